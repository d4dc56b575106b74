#include "fastctc/beam_search.h"

#include <pybind11/pybind11.h>

#include <algorithm>

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Batch = std::vector<fastctc::BeamResults>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

fastctc::BeamSearchOptions options_of(int64_t C, int64_t blank, int64_t beam_size, bool from_logits,
                                      double beam_threshold, int64_t top_k, double top_p, double blank_skip_threshold,
                                      bool timesteps, bool confidence, Address fusion, Address bonus_rows) {
  fastctc::BeamSearchOptions o;
  o.C = C;
  o.blank = blank;
  o.beam_size = beam_size;
  o.from_logits = from_logits;
  o.beam_threshold = beam_threshold;
  o.top_k = top_k;
  o.top_p = top_p;
  o.blank_skip_threshold = blank_skip_threshold;
  o.timesteps = timesteps;
  o.confidence = confidence;
  o.fusion = at<const fastctc::FusionView>(fusion);
  o.bonus_rows = at<const void>(bonus_rows);
  return o;
}

Batch search(const fastctc::BeamSearchOptions& options, Address scores, int dtype, int64_t N, int64_t T,
             int64_t stride_n, int64_t stride_t, Address lengths, int64_t nbest, int num_threads) {
  fastctc::BeamSearchParams p;
  p.options = options;
  p.scores = at<const void>(scores);
  p.dtype = static_cast<fastctc::DType>(dtype);
  p.N = N;
  p.T = T;
  p.scores_stride_n = stride_n;
  p.scores_stride_t = stride_t;
  p.lengths = at<const int64_t>(lengths);
  p.nbest = nbest;
  p.num_threads = num_threads;
  py::gil_scoped_release unlocked;
  return fastctc::beam_search_cpu(p);
}

int64_t longest(const Batch& batch) {
  size_t most = 0;
  for (const fastctc::BeamResults& results : batch)
    for (const fastctc::BeamResult& result : results) most = std::max(most, result.tokens.size());
  return int64_t(most);
}

template <class From, class To>
void write_row(const std::vector<From>& values, size_t width, To* out) {
  std::copy_n(values.begin(), std::min(values.size(), width), out);
}

void write_results(const Batch& batch, int64_t nbest, int64_t width, Address lengths, Address scores, Address lm_scores,
                   Address tokens, Address starts, Address ends, Address confidence) {
  py::gil_scoped_release unlocked;
  for (size_t n = 0; n < batch.size(); ++n)
    for (size_t k = 0; k < std::min(batch[n].size(), size_t(nbest)); ++k) {
      const fastctc::BeamResult& result = batch[n][k];
      const size_t row = n * size_t(nbest) + k, first = row * size_t(width);
      at<int64_t>(lengths)[row] = int64_t(result.tokens.size());
      at<double>(scores)[row] = result.score;
      at<double>(lm_scores)[row] = result.lm_score;
      write_row(result.tokens, size_t(width), at<int64_t>(tokens) + first);
      write_row(result.starts, size_t(width), at<int64_t>(starts) + first);
      write_row(result.ends, size_t(width), at<int64_t>(ends) + first);
      write_row(result.confidence, size_t(width), at<float>(confidence) + first);
    }
}

}  // namespace

void bind_beam_search(py::module_& m) {
  py::class_<fastctc::BeamSearchOptions>(m, "BeamSearchOptions")
      .def(py::init(&options_of), py::arg("C"), py::arg("blank"), py::arg("beam_size"), py::arg("from_logits"),
           py::arg("beam_threshold"), py::arg("top_k"), py::arg("top_p"), py::arg("blank_skip_threshold"),
           py::arg("timesteps"), py::arg("confidence"), py::arg("fusion") = 0, py::arg("bonus_rows") = 0);

  py::class_<Batch>(m, "BeamResults")
      .def("longest", &longest, "Tokens of the longest labelling.")
      .def("write", &write_results,
           "Writes, by address, into lengths (int64), scores and lm_scores (float64), each (N, nbest), and into "
           "tokens,\n"
           "starts and ends (int64) and confidence (float32), each (N, nbest, width). What there is no result for is\n"
           "left as it is.",
           py::arg("nbest"), py::arg("width"), py::arg("lengths"), py::arg("scores"), py::arg("lm_scores"),
           py::arg("tokens"), py::arg("starts"), py::arg("ends"), py::arg("confidence"));

  py::class_<fastctc::BeamSearch>(m, "BeamSearch")
      .def(py::init([](const fastctc::BeamSearchOptions& options, int dtype) {
             return std::make_unique<fastctc::BeamSearch>(options, static_cast<fastctc::DType>(dtype));
           }),
           py::arg("options"), py::arg("dtype"))
      .def("advance",
           [](fastctc::BeamSearch& beam, Address scores, int64_t stride, int64_t frames) {
             py::gil_scoped_release unlocked;
             beam.advance(at<const void>(scores), stride, frames);
           })
      .def("best", [](fastctc::BeamSearch& beam, int64_t nbest, Address scores, int64_t stride, int64_t frames) {
        py::gil_scoped_release unlocked;
        Batch batch{beam.best(nbest)};
        beam.align(at<const void>(scores), stride, frames, batch.front());
        return batch;
      });

  m.def("beam_search_cpu", &search,
        "Prefix beam search on host memory, given by addresses; see fastctc/beam_search.h for each argument.",
        py::arg("options"), py::arg("scores"), py::arg("dtype"), py::arg("N"), py::arg("T"), py::arg("stride_n"),
        py::arg("stride_t"), py::arg("lengths"), py::arg("nbest"), py::arg("num_threads"));
}
