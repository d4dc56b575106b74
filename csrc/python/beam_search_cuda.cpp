#ifdef FASTCTC_WITH_CUDA

#include "fastctc/beam_search_cuda.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "fastctc/beam_search.h"
#include "fastctc/ctc_loss_cuda.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Params = fastctc::BeamSearchCudaParams;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Params params_of(const fastctc::BeamSearchOptions& o, Address fusion, int device, Address stream, Address scores,
                 int dtype, int64_t N, int64_t T, int64_t stride_n, int64_t stride_t, Address lengths, int64_t nbest,
                 Address tokens, Address token_lengths, Address final_scores, Address lm_scores) {
  Params p;
  p.device = device;
  p.stream = at<void>(stream);
  p.shape.dtype = static_cast<fastctc::DType>(dtype);
  p.shape.N = N;
  p.shape.T = T;
  p.shape.C = o.C;
  p.shape.beam_size = o.beam_size;
  p.shape.top_k = o.top_k;
  p.shape.fused = fusion != 0;
  p.scores = at<const void>(scores);
  p.scores_stride_n = stride_n;
  p.scores_stride_t = stride_t;
  p.lengths = at<const int64_t>(lengths);
  p.blank = o.blank;
  p.from_logits = o.from_logits;
  p.beam_threshold = o.beam_threshold;
  p.top_p = o.top_p;
  p.blank_skip_threshold = o.blank_skip_threshold;
  p.fusion = at<const fastctc::FusionView>(fusion);
  p.nbest = nbest;
  p.tokens = at<int64_t>(tokens);
  p.token_lengths = at<int64_t>(token_lengths);
  p.final_scores = at<double>(final_scores);
  p.lm_scores = at<double>(lm_scores);
  return p;
}

template <class Launch>
void run(const Params& p, Launch launch) {
  int error;
  {
    py::gil_scoped_release unlocked;
    error = launch();
  }
  if (error != 0)
    throw std::runtime_error("beam search on CUDA device " + std::to_string(p.device) + ": " +
                             fastctc::cuda_error_text(error));
}

void search(Params& p, Address scratch) {
  p.scratch = at<void>(scratch);
  run(p, [&] { return fastctc::beam_search_cuda(p); });
}

using Align = fastctc::BeamAlignCudaParams;

Align align_of(const Params& search, int64_t max_tokens, int64_t max_bytes, Address starts, Address ends,
               Address confidence) {
  Align p;
  p.search = search;
  p.max_tokens = max_tokens;
  p.max_bytes = max_bytes;
  p.starts = at<int64_t>(starts);
  p.ends = at<int64_t>(ends);
  p.confidence = at<float>(confidence);
  return p;
}

void align(Align& p, Address scratch) {
  p.scratch = at<void>(scratch);
  run(p.search, [&] { return fastctc::beam_align_cuda(p); });
}

}  // namespace

void bind_beam_search_cuda(py::module_& m) {
  py::class_<Params>(m, "BeamSearchCuda", "A call of beam_search_cuda; see fastctc/beam_search_cuda.h.")
      .def(py::init(&params_of), py::arg("options"), py::arg("fusion"), py::arg("device"), py::arg("stream"),
           py::arg("scores"), py::arg("dtype"), py::arg("N"), py::arg("T"), py::arg("stride_n"), py::arg("stride_t"),
           py::arg("lengths"), py::arg("nbest"), py::arg("tokens"), py::arg("token_lengths"), py::arg("final_scores"),
           py::arg("lm_scores"))
      .def("scratch_bytes", [](const Params& p) { return fastctc::beam_search_cuda_scratch_bytes(p.shape); });
  m.def("beam_search_cuda", &search, "Puts the search on a stream and returns at once.", py::arg("call"),
        py::arg("scratch"));

  py::class_<Align>(m, "BeamAlignCuda", "A call of beam_align_cuda, after the search that it is for.")
      .def(py::init(&align_of), py::arg("search"), py::arg("max_tokens"), py::arg("max_bytes"), py::arg("starts"),
           py::arg("ends"), py::arg("confidence"))
      .def("scratch_bytes", &fastctc::beam_align_cuda_scratch_bytes);
  m.def("beam_align_cuda", &align, "Puts the alignment of the results on a stream and returns at once.",
        py::arg("call"), py::arg("scratch"));
}

#endif
