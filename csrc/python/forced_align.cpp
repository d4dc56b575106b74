#include "fastctc/forced_align.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

using Address = uintptr_t;

py::object forced_align_cpu(Address scores, int dtype, int64_t T, int64_t N, int64_t C, int64_t scores_stride_t,
                            int64_t scores_stride_n, Address targets, int64_t targets_numel, int64_t targets_stride,
                            Address input_lengths, Address target_lengths, int64_t blank, bool from_logits,
                            Address paths, Address path_scores, Address row_faults, int num_threads) {
  fastctc::ForcedAlignParams p;
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
  p.paths = reinterpret_cast<int64_t*>(paths);
  p.path_scores = reinterpret_cast<void*>(path_scores);
  p.row_faults = reinterpret_cast<int32_t*>(row_faults);
  p.num_threads = num_threads;
  fastctc::CtcLossStatus status;
  {
    py::gil_scoped_release unlocked;
    status = fastctc::forced_align_cpu(p);
  }
  if (status.fault == fastctc::CtcLossFault::none) return py::none();
  return py::make_tuple(static_cast<int>(status.fault), status.row, status.value, status.position);
}

}  // namespace

void bind_forced_align(py::module_& m) {
  m.def("forced_align_cpu", &forced_align_cpu,
        "Best CTC path of each target on host memory, given by addresses; see fastctc/forced_align.h for each\n"
        "argument. Returns None, or (fault, row, value, position) of the length or label at fault.");
}
