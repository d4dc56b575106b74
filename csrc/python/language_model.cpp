#include "fastctc/language_model.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

namespace py = pybind11;

namespace {

using Address = uintptr_t;

template <typename T>
const T* at(Address address) {
  return reinterpret_cast<const T*>(address);
}

py::bytes to_bytes(const fastctc::TableBlock& block) { return py::bytes(block.data(), block.size()); }

void feed(fastctc::ArpaReader& reader, const py::bytes& text) {
  char* data;
  py::ssize_t size;
  if (PyBytes_AsStringAndSize(text.ptr(), &data, &size) != 0) throw py::error_already_set();
  py::gil_scoped_release unlocked;
  reader.feed(data, static_cast<std::size_t>(size));
}

py::tuple finish(fastctc::ArpaReader& reader) {
  fastctc::NGramModel model;
  {
    py::gil_scoped_release unlocked;
    model = reader.finish();
  }
  return py::make_tuple(to_bytes(model.table), py::bytes(model.vocabulary), model.counts, model.unknown,
                        model.unknown_is_listed);
}

void ngram_scores(Address table, Address words, int64_t count, bool start, Address scores) {
  fastctc::ngram_scores(at<void>(table), at<int32_t>(words), count, start, reinterpret_cast<float*>(scores));
}

py::bytes make_lexicon(Address symbols, Address first, int64_t count, Address indices, Address ngram_words) {
  fastctc::TableBlock block;
  {
    py::gil_scoped_release unlocked;
    block = fastctc::make_lexicon(at<int32_t>(symbols), at<int64_t>(first), count, at<int32_t>(indices),
                                  at<int32_t>(ngram_words));
  }
  return to_bytes(block);
}

py::bytes make_hotwords(Address symbols, Address first, int64_t count, Address bonuses, bool after_boundary) {
  fastctc::TableBlock block;
  {
    py::gil_scoped_release unlocked;
    block = fastctc::make_hotwords(at<int32_t>(symbols), at<int64_t>(first), count, at<float>(bonuses), after_boundary);
  }
  return to_bytes(block);
}

fastctc::TableAddress table(const std::pair<Address, Address>& addresses) {
  return {at<void>(addresses.first), at<void>(addresses.second)};
}

fastctc::FusionParams fusion_params(std::pair<Address, Address> ngram, std::pair<Address, Address> lexicon,
                                    std::pair<Address, Address> hotwords, std::pair<Address, Address> tokens, int64_t C,
                                    int unit, float ngram_weight, float word_score, float unknown_score) {
  fastctc::FusionParams p;
  p.ngram = table(ngram);
  p.lexicon = table(lexicon);
  p.hotwords = table(hotwords);
  p.tokens = table(tokens);
  p.C = C;
  p.unit = static_cast<fastctc::NGramUnit>(unit);
  p.ngram_weight = ngram_weight;
  p.word_score = word_score;
  p.unknown_score = unknown_score;
  return p;
}

py::bytes fusion_view(const fastctc::FusionParams& params) {
  const fastctc::FusionView view = fastctc::make_fusion_view(params);
  return py::bytes(reinterpret_cast<const char*>(&view), sizeof view);
}

py::bytes make_bonus_rows(const fastctc::FusionParams& params, int64_t blank) {
  fastctc::TableBlock block;
  {
    py::gil_scoped_release unlocked;
    block = fastctc::make_bonus_rows(params, blank);
  }
  return to_bytes(block);
}

using State = std::tuple<int32_t, int32_t, int32_t>;

State to_tuple(const fastctc::FusionState& state) { return {state.ngram, state.word, state.hotword}; }

fastctc::FusionState from_tuple(const State& state) {
  return {std::get<0>(state), std::get<1>(state), std::get<2>(state)};
}

State fusion_start(Address view) { return to_tuple(fastctc::fusion_start(*at<fastctc::FusionView>(view))); }

std::pair<float, State> fusion_extend(Address view, const State& state, int32_t token) {
  fastctc::FusionState next;
  const float bonus = fastctc::fusion_extend(*at<fastctc::FusionView>(view), from_tuple(state), token, &next);
  return {bonus, to_tuple(next)};
}

float fusion_finish(Address view, const State& state) {
  return fastctc::fusion_finish(*at<fastctc::FusionView>(view), from_tuple(state));
}

float fusion_largest_bonus(Address view, const std::optional<State>& state, std::optional<int32_t> token) {
  const auto& fusion = *at<fastctc::FusionView>(view);
  if (!state) return fastctc::fusion_largest_bonus(fusion);
  return token ? fastctc::fusion_largest_bonus(fusion, from_tuple(*state), *token)
               : fastctc::fusion_largest_bonus(fusion, from_tuple(*state));
}

py::tuple fusion_trace(Address view, Address tokens, int64_t count) {
  const fastctc::FusionTrace trace = fastctc::trace_fusion(*at<fastctc::FusionView>(view), at<int32_t>(tokens), count);
  py::list words;
  for (const fastctc::FusionWord& word : trace.words) words.append(py::make_tuple(word.index, word.begin, word.end));
  return py::make_tuple(trace.allowed, trace.bonus.ngram, trace.bonus.words, trace.bonus.hotwords, words);
}

}  // namespace

void bind_language_model(py::module_& m) {
  py::class_<fastctc::ArpaReader>(m, "ArpaReader", "Reads an ARPA file in pieces; see fastctc/language_model.h.")
      .def(py::init<float>(), py::arg("unknown_score"))
      .def("feed", &feed, py::arg("text"))
      .def_property_readonly("lines", &fastctc::ArpaReader::lines, "Whole lines read so far.")
      .def("finish", &finish, "Returns (table, vocabulary, counts, unknown word, whether the file lists it).");
  m.def("ngram_scores", &ngram_scores, py::arg("table"), py::arg("words"), py::arg("count"), py::arg("start"),
        py::arg("scores"));
  m.def("make_lexicon", &make_lexicon, py::arg("symbols"), py::arg("first"), py::arg("count"), py::arg("indices"),
        py::arg("ngram_words"));
  m.def("make_hotwords", &make_hotwords, py::arg("symbols"), py::arg("first"), py::arg("count"), py::arg("bonuses"),
        py::arg("after_boundary"));
  py::class_<fastctc::FusionParams>(m, "FusionParams", "Tables are (address on the host, address to read).")
      .def(py::init(&fusion_params), py::arg("ngram"), py::arg("lexicon"), py::arg("hotwords"), py::arg("tokens"),
           py::arg("C"), py::arg("unit"), py::arg("ngram_weight"), py::arg("word_score"), py::arg("unknown_score"));
  m.def("fusion_view", &fusion_view, "A FusionView as bytes, to be passed on by its address.", py::arg("params"));
  m.def("make_bonus_rows", &make_bonus_rows, py::arg("params"), py::arg("blank"));
  m.def("fusion_start", &fusion_start, py::arg("view"));
  m.def("fusion_extend", &fusion_extend, "Returns (bonus, next state).", py::arg("view"), py::arg("state"),
        py::arg("token"));
  m.def("fusion_finish", &fusion_finish, py::arg("view"), py::arg("state"));
  m.def("fusion_largest_bonus", &fusion_largest_bonus, py::arg("view"), py::arg("state") = py::none(),
        py::arg("token") = py::none());
  m.def("fusion_trace", &fusion_trace,
        "Returns (allowed, n-gram ln p, word scores, hotword bonuses, [(word, first token, token after the last)]).",
        py::arg("view"), py::arg("tokens"), py::arg("count"));
}
