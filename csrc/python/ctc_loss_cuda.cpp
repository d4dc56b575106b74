#ifdef FASTCTC_WITH_CUDA

#include "fastctc/ctc_loss_cuda.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace {

using Address = uintptr_t;

fastctc::CtcLossCudaShape make_shape(int dtype, int64_t T, int64_t N, int64_t C, int64_t max_labels,
                                     int64_t total_labels, bool want_grad) {
  fastctc::CtcLossCudaShape shape;
  shape.dtype = static_cast<fastctc::DType>(dtype);
  shape.T = T;
  shape.N = N;
  shape.C = C;
  shape.max_labels = max_labels;
  shape.total_labels = total_labels;
  shape.want_grad = want_grad;
  return shape;
}

py::tuple memory(int dtype, int64_t T, int64_t N, int64_t C, int64_t max_labels, int64_t total_labels, bool want_grad,
                 int64_t max_workspace_bytes) {
  const fastctc::CtcLossCudaMemory bytes = fastctc::ctc_loss_cuda_memory(
      make_shape(dtype, T, N, C, max_labels, total_labels, want_grad), max_workspace_bytes);
  return py::make_tuple(bytes.saved_bytes, bytes.scratch_bytes);
}

// What the forward and the backward call are told in the same words.
fastctc::CtcLossCudaParams make_params(int device, Address stream, Address scores, int dtype, int64_t T, int64_t N,
                                       int64_t C, int64_t scores_stride_t, int64_t scores_stride_n, Address targets,
                                       int64_t targets_numel, int64_t targets_stride, Address input_lengths,
                                       Address target_lengths, int64_t blank, bool from_logits, bool zero_infinity,
                                       bool true_grad, int reduction, int64_t max_labels, int64_t total_labels,
                                       bool want_grad, int64_t max_workspace_bytes, Address saved) {
  fastctc::CtcLossCudaParams p;
  p.device = device;
  p.stream = reinterpret_cast<void*>(stream);
  p.shape = make_shape(dtype, T, N, C, max_labels, total_labels, want_grad);
  p.scores = reinterpret_cast<const void*>(scores);
  p.scores_stride_t = scores_stride_t;
  p.scores_stride_n = scores_stride_n;
  p.targets = reinterpret_cast<const int64_t*>(targets);
  p.targets_numel = targets_numel;
  p.targets_stride = targets_stride;
  p.input_lengths = reinterpret_cast<const int64_t*>(input_lengths);
  p.target_lengths = reinterpret_cast<const int64_t*>(target_lengths);
  p.blank = blank;
  p.from_logits = from_logits;
  p.zero_infinity = zero_infinity;
  p.true_grad = true_grad;
  p.reduction = static_cast<fastctc::Reduction>(reduction);
  p.max_workspace_bytes = max_workspace_bytes;
  p.saved = reinterpret_cast<void*>(saved);
  return p;
}

void run(int (*call)(const fastctc::CtcLossCudaParams&), const fastctc::CtcLossCudaParams& params) {
  int error;
  {
    py::gil_scoped_release unlocked;
    error = call(params);
  }
  if (error != 0)
    throw std::runtime_error(std::string("ctc_loss on CUDA device ") + std::to_string(params.device) + ": " +
                             fastctc::cuda_error_text(error));
}

void forward(int device, Address stream, Address scores, int dtype, int64_t T, int64_t N, int64_t C,
             int64_t scores_stride_t, int64_t scores_stride_n, Address targets, int64_t targets_numel,
             int64_t targets_stride, Address input_lengths, Address target_lengths, int64_t blank, bool from_logits,
             bool zero_infinity, bool true_grad, int reduction, int64_t max_labels, int64_t total_labels,
             bool want_grad, int64_t max_workspace_bytes, Address saved, Address scratch, Address loss,
             Address row_faults) {
  fastctc::CtcLossCudaParams p =
      make_params(device, stream, scores, dtype, T, N, C, scores_stride_t, scores_stride_n, targets, targets_numel,
                  targets_stride, input_lengths, target_lengths, blank, from_logits, zero_infinity, true_grad,
                  reduction, max_labels, total_labels, want_grad, max_workspace_bytes, saved);
  p.scratch = reinterpret_cast<void*>(scratch);
  p.loss = reinterpret_cast<void*>(loss);
  p.row_faults = reinterpret_cast<int32_t*>(row_faults);
  run(fastctc::ctc_loss_cuda_forward, p);
}

void backward(int device, Address stream, Address scores, int dtype, int64_t T, int64_t N, int64_t C,
              int64_t scores_stride_t, int64_t scores_stride_n, Address targets, int64_t targets_numel,
              int64_t targets_stride, Address input_lengths, Address target_lengths, int64_t blank, bool from_logits,
              bool zero_infinity, bool true_grad, int reduction, int64_t max_labels, int64_t total_labels,
              bool want_grad, int64_t max_workspace_bytes, Address saved, Address grad_out, Address grad,
              int64_t grad_stride_t, int64_t grad_stride_n) {
  fastctc::CtcLossCudaParams p =
      make_params(device, stream, scores, dtype, T, N, C, scores_stride_t, scores_stride_n, targets, targets_numel,
                  targets_stride, input_lengths, target_lengths, blank, from_logits, zero_infinity, true_grad,
                  reduction, max_labels, total_labels, want_grad, max_workspace_bytes, saved);
  p.grad_out = reinterpret_cast<const void*>(grad_out);
  p.grad = reinterpret_cast<void*>(grad);
  p.grad_stride_t = grad_stride_t;
  p.grad_stride_n = grad_stride_n;
  run(fastctc::ctc_loss_cuda_backward, p);
}

}  // namespace

void bind_ctc_loss_cuda(py::module_& m) {
  m.def("ctc_loss_cuda_memory", &memory,
        "Bytes of (saved, scratch) device memory that the CUDA loss of these shapes needs.", py::arg("dtype"),
        py::arg("T"), py::arg("N"), py::arg("C"), py::arg("max_labels"), py::arg("total_labels"), py::arg("want_grad"),
        py::arg("max_workspace_bytes"));
  m.def("ctc_loss_cuda_forward", &forward,
        "CTC loss on device memory, given by addresses; see fastctc/ctc_loss_cuda.h for each argument.\n"
        "Raises RuntimeError with CUDA's words where a launch fails.",
        py::arg("device"), py::arg("stream"), py::arg("scores"), py::arg("dtype"), py::arg("T"), py::arg("N"),
        py::arg("C"), py::arg("scores_stride_t"), py::arg("scores_stride_n"), py::arg("targets"),
        py::arg("targets_numel"), py::arg("targets_stride"), py::arg("input_lengths"), py::arg("target_lengths"),
        py::arg("blank"), py::arg("from_logits"), py::arg("zero_infinity"), py::arg("true_grad"), py::arg("reduction"),
        py::arg("max_labels"), py::arg("total_labels"), py::arg("want_grad"), py::arg("max_workspace_bytes"),
        py::arg("saved"), py::arg("scratch"), py::arg("loss"), py::arg("row_faults"));
  m.def("ctc_loss_cuda_backward", &backward,
        "The gradient, from the same arguments and what ctc_loss_cuda_forward saved. Raises likewise.",
        py::arg("device"), py::arg("stream"), py::arg("scores"), py::arg("dtype"), py::arg("T"), py::arg("N"),
        py::arg("C"), py::arg("scores_stride_t"), py::arg("scores_stride_n"), py::arg("targets"),
        py::arg("targets_numel"), py::arg("targets_stride"), py::arg("input_lengths"), py::arg("target_lengths"),
        py::arg("blank"), py::arg("from_logits"), py::arg("zero_infinity"), py::arg("true_grad"), py::arg("reduction"),
        py::arg("max_labels"), py::arg("total_labels"), py::arg("want_grad"), py::arg("max_workspace_bytes"),
        py::arg("saved"), py::arg("grad_out"), py::arg("grad"), py::arg("grad_stride_t"), py::arg("grad_stride_n"));
}

#endif
