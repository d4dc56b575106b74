#include "fastctc/spectrogram_norm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Five = std::array<int64_t, 5>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

fastctc::SpectrogramShape shape_of(const Five& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

fastctc::SpectrogramView view_of(Address data, const Five& strides) {
  return {pointer<void>(data), strides[0], strides[1], strides[2], strides[3], strides[4]};
}

int64_t spectrogram_norm_cpu(bool gradient, int dtype, const Five& shape, Address x, const Five& x_strides, Address out,
                             const Five& out_strides, Address grad, const Five& grad_strides, Address lengths,
                             bool over_batch, bool over_freq, int log, double log_eps, double eps, Address weight,
                             Address bias, Address masks, int64_t mask_rows, int64_t mask_count, int64_t time_masks,
                             Address mean, Address var, Address grad_sum, Address grad_dot, bool reduce,
                             int num_threads) {
  fastctc::SpectrogramNormParams p;
  p.dtype = static_cast<fastctc::DType>(dtype);
  p.shape = shape_of(shape);
  p.x = view_of(x, x_strides);
  p.out = view_of(out, out_strides);
  p.grad = view_of(grad, grad_strides);
  p.lengths = pointer<const int64_t>(lengths);
  p.over_batch = over_batch;
  p.over_freq = over_freq;
  p.log = static_cast<fastctc::SpectrogramLog>(log);
  p.log_eps = log_eps;
  p.eps = eps;
  p.weight = pointer<const void>(weight);
  p.bias = pointer<const void>(bias);
  p.masks = pointer<const int32_t>(masks);
  p.mask_rows = mask_rows;
  p.mask_count = mask_count;
  p.time_masks = time_masks;
  p.mean = pointer<double>(mean);
  p.var = pointer<double>(var);
  p.grad_sum = pointer<double>(grad_sum);
  p.grad_dot = pointer<double>(grad_dot);
  p.reduce = reduce;
  p.num_threads = num_threads;
  py::gil_scoped_release unlocked;
  return gradient ? fastctc::spectrogram_norm_gradient_cpu(p) : fastctc::spectrogram_norm_cpu(p);
}

void draw_spectrogram_masks(int64_t seed, Address lengths, const Five& shape, int64_t time_count, int64_t time_width,
                            int64_t time_share, int64_t freq_count, int64_t freq_width, int64_t rows, Address masks) {
  fastctc::SpectrogramMaskParams p;
  p.seed = static_cast<uint64_t>(seed);
  p.lengths = pointer<const int64_t>(lengths);
  p.shape = shape_of(shape);
  p.time_count = time_count;
  p.time_width = time_width;
  p.time_share = time_share;
  p.freq_count = freq_count;
  p.freq_width = freq_width;
  p.rows = rows;
  p.masks = pointer<int32_t>(masks);
  py::gil_scoped_release unlocked;
  fastctc::draw_spectrogram_masks(p);
}

}  // namespace

void bind_spectrogram_norm(py::module_& m) {
  m.def("spectrogram_norm_cpu", &spectrogram_norm_cpu,
        "Normalisation of spectrograms, or its gradient, on host memory; see fastctc/spectrogram_norm.h.\n"
        "Returns -1, or the first utterance whose length is out of range, and then nothing was written.",
        py::arg("gradient"), py::arg("dtype"), py::arg("shape"), py::arg("x"), py::arg("x_strides"), py::arg("out"),
        py::arg("out_strides"), py::arg("grad"), py::arg("grad_strides"), py::arg("lengths"), py::arg("over_batch"),
        py::arg("over_freq"), py::arg("log"), py::arg("log_eps"), py::arg("eps"), py::arg("weight"), py::arg("bias"),
        py::arg("masks"), py::arg("mask_rows"), py::arg("mask_count"), py::arg("time_masks"), py::arg("mean"),
        py::arg("var"), py::arg("grad_sum"), py::arg("grad_dot"), py::arg("reduce"), py::arg("num_threads"));
  m.def("draw_spectrogram_masks", &draw_spectrogram_masks, py::arg("seed"), py::arg("lengths"), py::arg("shape"),
        py::arg("time_count"), py::arg("time_width"), py::arg("time_share"), py::arg("freq_count"),
        py::arg("freq_width"), py::arg("rows"), py::arg("masks"));
}
