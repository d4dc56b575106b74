#ifdef FASTCTC_WITH_CUDA

#include "fastctc/forced_align_cuda.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "fastctc/ctc_loss_cuda.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

fastctc::ForcedAlignCudaShape shape_of(int dtype, int64_t T, int64_t N, int64_t C, int64_t max_labels,
                                       bool from_logits) {
  fastctc::ForcedAlignCudaShape shape;
  shape.dtype = static_cast<fastctc::DType>(dtype);
  shape.T = T;
  shape.N = N;
  shape.C = C;
  shape.max_labels = max_labels;
  shape.from_logits = from_logits;
  return shape;
}

int64_t forced_align_cuda_scratch(int dtype, int64_t T, int64_t N, int64_t C, int64_t max_labels, bool from_logits) {
  return fastctc::forced_align_cuda_scratch_bytes(shape_of(dtype, T, N, C, max_labels, from_logits));
}

void forced_align_cuda(int device, Address stream, Address scores, int dtype, int64_t T, int64_t N, int64_t C,
                       int64_t scores_stride_t, int64_t scores_stride_n, Address targets, int64_t targets_numel,
                       int64_t targets_stride, Address input_lengths, Address target_lengths, int64_t blank,
                       bool from_logits, int64_t max_labels, Address scratch, Address paths, Address path_scores,
                       Address row_faults) {
  fastctc::ForcedAlignCudaParams p;
  p.device = device;
  p.stream = reinterpret_cast<void*>(stream);
  p.shape = shape_of(dtype, T, N, C, max_labels, from_logits);
  p.scores = reinterpret_cast<const void*>(scores);
  p.scores_stride_t = scores_stride_t;
  p.scores_stride_n = scores_stride_n;
  p.targets = reinterpret_cast<const int64_t*>(targets);
  p.targets_numel = targets_numel;
  p.targets_stride = targets_stride;
  p.input_lengths = reinterpret_cast<const int64_t*>(input_lengths);
  p.target_lengths = reinterpret_cast<const int64_t*>(target_lengths);
  p.blank = blank;
  p.scratch = reinterpret_cast<void*>(scratch);
  p.paths = reinterpret_cast<int64_t*>(paths);
  p.path_scores = reinterpret_cast<void*>(path_scores);
  p.row_faults = reinterpret_cast<int32_t*>(row_faults);
  int error;
  {
    py::gil_scoped_release unlocked;
    error = fastctc::forced_align_cuda(p);
  }
  if (error != 0)
    throw std::runtime_error(std::string("forced_align on CUDA device ") + std::to_string(device) + ": " +
                             fastctc::cuda_error_text(error));
}

}  // namespace

void bind_forced_align_cuda(py::module_& m) {
  m.def("forced_align_cuda_scratch", &forced_align_cuda_scratch,
        "Bytes of scratch memory that forced_align_cuda needs: host arithmetic.");
  m.def("forced_align_cuda", &forced_align_cuda,
        "Puts forced alignment on a stream; see fastctc/forced_align_cuda.h for each argument. Returns at once.");
}

#endif
