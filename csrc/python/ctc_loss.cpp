#include "fastctc/ctc_loss.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fastctc/cpu_target.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

py::object result_of(const fastctc::CtcLossStatus& status) {
  if (status.fault == fastctc::CtcLossFault::none) return py::none();
  return py::make_tuple(static_cast<int>(status.fault), status.row, status.value, status.position);
}

py::object ctc_loss_check(int64_t T, int64_t N, int64_t C, Address targets, int64_t targets_numel,
                          int64_t targets_stride, Address input_lengths, Address target_lengths) {
  fastctc::CtcLossParams p;
  p.T = T;
  p.N = N;
  p.C = C;
  p.targets = reinterpret_cast<const int64_t*>(targets);
  p.targets_numel = targets_numel;
  p.targets_stride = targets_stride;
  p.input_lengths = reinterpret_cast<const int64_t*>(input_lengths);
  p.target_lengths = reinterpret_cast<const int64_t*>(target_lengths);
  return result_of(fastctc::ctc_loss_check(p));
}

py::object ctc_loss_cpu(Address scores, int dtype, int64_t T, int64_t N, int64_t C, int64_t scores_stride_t,
                        int64_t scores_stride_n, Address targets, int64_t targets_numel, int64_t targets_stride,
                        Address input_lengths, Address target_lengths, int64_t blank, bool from_logits,
                        bool zero_infinity, bool true_grad, int reduction, Address grad_out, Address loss, Address grad,
                        int64_t grad_stride_t, int64_t grad_stride_n, int num_threads) {
  fastctc::CtcLossParams p;
  p.scores = reinterpret_cast<const void*>(scores);
  p.dtype = static_cast<fastctc::DType>(dtype);
  p.T = T;
  p.N = N;
  p.C = C;
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
  p.grad_out = reinterpret_cast<const void*>(grad_out);
  p.loss = reinterpret_cast<void*>(loss);
  p.grad = reinterpret_cast<void*>(grad);
  p.grad_stride_t = grad_stride_t;
  p.grad_stride_n = grad_stride_n;
  p.num_threads = num_threads;
  fastctc::CtcLossStatus status;
  {
    py::gil_scoped_release unlocked;
    status = fastctc::ctc_loss_cpu(p);
  }
  return result_of(status);
}

}  // namespace

void bind_ctc_loss(py::module_& m) {
  m.def("ctc_loss_cpu", &ctc_loss_cpu,
        "CTC loss and gradient on host memory, given by addresses; see fastctc/ctc_loss.h for each argument.\n"
        "Returns None, or (fault, row, value, position) where a length or label is at fault and nothing was written.",
        py::arg("scores"), py::arg("dtype"), py::arg("T"), py::arg("N"), py::arg("C"), py::arg("scores_stride_t"),
        py::arg("scores_stride_n"), py::arg("targets"), py::arg("targets_numel"), py::arg("targets_stride"),
        py::arg("input_lengths"), py::arg("target_lengths"), py::arg("blank"), py::arg("from_logits"),
        py::arg("zero_infinity"), py::arg("true_grad"), py::arg("reduction"), py::arg("grad_out"), py::arg("loss"),
        py::arg("grad"), py::arg("grad_stride_t"), py::arg("grad_stride_n"), py::arg("num_threads"));
  m.def("ctc_loss_check", &ctc_loss_check,
        "The first bad length or label, as ctc_loss_cpu returns it; address 0 for what the host cannot see.",
        py::arg("T"), py::arg("N"), py::arg("C"), py::arg("targets"), py::arg("targets_numel"),
        py::arg("targets_stride"), py::arg("input_lengths"), py::arg("target_lengths"));
  m.def("set_max_workspace_mb", &fastctc::set_max_workspace_mb, py::arg("mb"));
  m.def("max_workspace_mb", &fastctc::max_workspace_mb);
  m.def("cpu_targets", &fastctc::cpu_targets);
  m.def("cpu_target", &fastctc::cpu_target);
  m.def("set_cpu_target", &fastctc::set_cpu_target, py::arg("name"));
}
