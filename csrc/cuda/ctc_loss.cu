// Launches the kernels of the CTC loss. Forward: prepare, then for as many rows at a time as there is memory for, rows,
// lattice and sums; at last the losses. Backward: the gradient.
#include <type_traits>

#include "ctc_loss_gradient.cuh"
#include "ctc_loss_lattice.cuh"
#include "ctc_loss_lattice_general.cuh"
#include "ctc_loss_prepare.cuh"
#include "ctc_loss_rows.cuh"
#include "ctc_loss_sums.cuh"
#include "device_scope.cuh"

namespace fastctc {
namespace cuda {
namespace {

// Calls body with 8, 32 or kRowThreads, as a value of std::integral_constant's like, for `packets` 16-byte packets of
// work per row.
template <int n>
struct Threads {
  static constexpr int value = n;
};
template <class Body>
cudaError_t with_row_threads(int64_t packets, Body body) {
  if (packets <= 8) return body(Threads<8>{});
  if (packets <= 256) return body(Threads<32>{});
  return body(Threads<kRowThreads>{});
}

template <class X>
int64_t packets_of(int64_t classes) {
  return classes * int64_t(sizeof(X)) / 16 + 1;
}

template <int threads>
dim3 grid_of_rows(int64_t frames, int64_t rows) {
  constexpr int per_block = RowGroup<threads>::kPerBlock;
  return dim3(unsigned((frames * rows + per_block - 1) / per_block));
}

template <class X>
cudaError_t run_rows(const Call<typename ComputeType<X>::type>& call, int64_t first_row, int64_t rows) {
  const CtcLossCudaParams& p = call.p;
  const int64_t packets = p.from_logits ? packets_of<X>(p.shape.C) : call.plan.entries / 4;
  return with_row_threads(packets, [&](auto threads) {
    constexpr int n = decltype(threads)::value;
    return fastctc::launch(rows_kernel<X, n>, grid_of_rows<n>(call.plan.frames, rows), dim3(kRowThreads), 0,
                           cudaStream_t(p.stream), call, first_row, unsigned(rows));
  });
}

template <class Scalar, bool kGradient>
cudaError_t run_lattice(const Call<Scalar>& call, int64_t first_row, int64_t rows) {
  const LatticePlan& plan = call.plan;
  const auto start = [&](auto kernel) {
    return fastctc::launch(kernel, dim3(unsigned(rows)), dim3(unsigned(64 * plan.warps)), size_t(plan.shared_bytes),
                           cudaStream_t(call.p.stream), call, first_row);
  };
  if constexpr (sizeof(Scalar) == 4) {
    if (plan.pairs_per_lane == 4) return start(lattice_kernel<Scalar, 4, true, kGradient>);
  }
  if (plan.warps == 1) return start(lattice_kernel<Scalar, 2, false, kGradient>);
  return start(lattice_kernel<Scalar, 2, true, kGradient>);
}

// Each row is taken by one of the two lattice kernels; only the device knows which.
template <class Scalar>
cudaError_t run_posteriors(const Call<Scalar>& call, int64_t first_row, int64_t rows) {
  const CtcLossCudaParams& p = call.p;
  cudaError_t error = cudaSuccess;
  if (call.plan.long_rows > 0)
    error = fastctc::launch(general_lattice_kernel<Scalar>, dim3(unsigned(rows)), dim3(kGeneralThreads),
                            size_t(call.plan.general_shared_bytes), cudaStream_t(p.stream), call, first_row);
  if (error != cudaSuccess || call.plan.longest < 0) return error;
  if (!p.shape.want_grad) return run_lattice<Scalar, false>(call, first_row, rows);
  error = run_lattice<Scalar, true>(call, first_row, rows);
  if (error != cudaSuccess) return error;
  // a few frames per warp
  const int64_t blocks = smaller(65535, larger(1, p.shape.T / (4 * kSumThreads / 32)));
  return fastctc::launch(sums_kernel<Scalar>, dim3(unsigned(rows), unsigned(blocks)), dim3(kSumThreads), 0,
                         cudaStream_t(p.stream), call, first_row);
}

template <class Scalar>
Call<Scalar> make_call(const CtcLossCudaParams& p) {
  Call<Scalar> call{};
  call.p = p;
  call.plan = make_plan<Scalar>(p.shape, p.max_workspace_bytes);
  lay_out(p.shape, call.plan, p.saved, p.scratch, &call.saved, &call.scratch);
  return call;
}

template <class X>
cudaError_t forward(const CtcLossCudaParams& p) {
  using Scalar = typename ComputeType<X>::type;
  const Call<Scalar> call = make_call<Scalar>(p);
  cudaError_t error = fastctc::launch(prepare_kernel<Scalar>, dim3(unsigned(p.shape.N)), dim3(kPrepareThreads), 0,
                                      cudaStream_t(p.stream), call);
  for (int64_t first = 0; first < p.shape.N && error == cudaSuccess; first += call.plan.rows) {
    const int64_t rows = smaller(call.plan.rows, p.shape.N - first);
    error = run_rows<X>(call, first, rows);
    if (error == cudaSuccess) error = run_posteriors(call, first, rows);
  }
  if (error != cudaSuccess) return error;
  return fastctc::launch(loss_kernel<Scalar>, dim3(1), dim3(kSumThreads), 0, cudaStream_t(p.stream), call);
}

template <class X>
cudaError_t backward(const CtcLossCudaParams& p) {
  const auto call = make_call<typename ComputeType<X>::type>(p);
  // as many rows at a time as the kernel can count frames of
  const int64_t at_once = larger(1, ((int64_t(1) << 31) - 1) / p.shape.T);
  for (int64_t first = 0; first < p.shape.N; first += at_once) {
    const int64_t rows = smaller(at_once, p.shape.N - first);
    const cudaError_t error = with_row_threads(packets_of<X>(p.shape.C), [&](auto threads) {
      constexpr int n = decltype(threads)::value;
      return fastctc::launch(gradient_kernel<X, n>, grid_of_rows<n>(p.shape.T, rows), dim3(kRowThreads), 0,
                             cudaStream_t(p.stream), call, first, unsigned(rows));
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// What the kernels count in 32 bits, with room for a step too far.
bool in_range(const CtcLossCudaShape& shape) {
  const int64_t most = (int64_t(1) << 31) - (int64_t(1) << 16);
  return shape.T > 0 && shape.T < most && shape.N > 0 && shape.N < most && shape.C > 0 && shape.C < most &&
         shape.max_labels >= 0 && shape.max_labels < int64_t(1) << 30 && shape.total_labels >= 0;
}

// Calls body with a null pointer to the type of the scores.
template <class Result, class Body>
Result with_type(DType dtype, Result unknown, Body body) {
  switch (dtype) {
#ifndef FASTCTC_ONLY_FLOAT32
    case DType::float16:
      return body(static_cast<__half*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<__nv_bfloat16*>(nullptr));
    case DType::float64:
      return body(static_cast<double*>(nullptr));
#endif
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    default:
      return unknown;
  }
}

// Likewise on the call's device.
template <class Body>
int run_typed(const CtcLossCudaParams& p, Body body) {
  if (!in_range(p.shape)) return int(cudaErrorInvalidValue);
  const DeviceScope scope(p.device);
  if (scope.error() != cudaSuccess) return int(scope.error());
  return int(with_type(p.shape.dtype, cudaErrorInvalidValue, body));
}

}  // namespace
}  // namespace cuda

CtcLossCudaMemory ctc_loss_cuda_memory(const CtcLossCudaShape& shape, int64_t max_workspace_bytes) {
  if (!cuda::in_range(shape)) return {0, 0};
  return cuda::with_type(shape.dtype, CtcLossCudaMemory{0, 0}, [&](auto* scores) {
    using Scalar = typename cuda::ComputeType<std::remove_pointer_t<decltype(scores)>>::type;
    cuda::Saved<Scalar> saved{};
    cuda::Scratch<Scalar> scratch{};
    return cuda::lay_out(shape, cuda::make_plan<Scalar>(shape, max_workspace_bytes), nullptr, nullptr, &saved,
                         &scratch);
  });
}

int ctc_loss_cuda_forward(const CtcLossCudaParams& params) {
  return cuda::run_typed(params,
                         [&](auto* scores) { return cuda::forward<std::remove_pointer_t<decltype(scores)>>(params); });
}

int ctc_loss_cuda_backward(const CtcLossCudaParams& params) {
  return cuda::run_typed(params,
                         [&](auto* scores) { return cuda::backward<std::remove_pointer_t<decltype(scores)>>(params); });
}

const char* cuda_error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

}  // namespace fastctc
