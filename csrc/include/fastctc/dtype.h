#pragma once

namespace fastctc {

// What scores and features are made of; the numbers are those of the Python package.
enum class DType : int { float16 = 0, bfloat16 = 1, float32 = 2, float64 = 3 };

}  // namespace fastctc
