#include <pybind11/pybind11.h>

// One function per capability, each in the file of its name.
void bind_beam_search(pybind11::module_& m);
void bind_build_info(pybind11::module_& m);
void bind_ctc_loss(pybind11::module_& m);
void bind_forced_align(pybind11::module_& m);
void bind_language_model(pybind11::module_& m);
void bind_output_memory(pybind11::module_& m);
void bind_spectrogram_norm(pybind11::module_& m);
#ifdef FASTCTC_WITH_CUDA
void bind_beam_search_cuda(pybind11::module_& m);
void bind_ctc_loss_cuda(pybind11::module_& m);
void bind_forced_align_cuda(pybind11::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fastctc. Pointers travel as integers; fastctc checks them first.";
  bind_beam_search(m);
  bind_build_info(m);
  bind_ctc_loss(m);
  bind_forced_align(m);
  bind_language_model(m);
  bind_output_memory(m);
  bind_spectrogram_norm(m);
#ifdef FASTCTC_WITH_CUDA
  bind_beam_search_cuda(m);
  bind_ctc_loss_cuda(m);
  bind_forced_align_cuda(m);
#endif
}
