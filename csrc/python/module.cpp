#include <pybind11/pybind11.h>

namespace fastctc::python {

void bind_build_info(pybind11::module_& m);
#ifdef FASTCTC_HAVE_CTC_LOSS
void bind_ctc_loss(pybind11::module_& m);
#endif

}  // namespace fastctc::python

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fastctc. Pointers travel as integers; fastctc checks them first.";
  fastctc::python::bind_build_info(m);
#ifdef FASTCTC_HAVE_CTC_LOSS
  fastctc::python::bind_ctc_loss(m);
#endif
}
