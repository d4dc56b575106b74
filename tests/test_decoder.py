"""What CTCDecoder makes of the search: texts, times, confidences, streams, errors."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from allocated import assert_nothing_is_kept
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastctc import CTCDecoder, Hypothesis, greedy_decode
from fastctc._native import _C

pytestmark = pytest.mark.usefixtures("needs_library")

LETTERS = ["_", *" abc"]


def emissions_of(path: str, peak: float = 0.9) -> Tensor:
    """(1, T, C) log-probabilities whose best class at each frame is the path's."""
    rest = (1 - peak) / (len(LETTERS) - 1)
    rows = torch.full((len(path), len(LETTERS)), rest, dtype=torch.float64)
    for t, letter in enumerate(path):
        rows[t, LETTERS.index(letter)] = peak
    return rows.log()[None]


def random_emissions(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(2).log_softmax(-1)


def test_texts_and_words() -> None:
    best = CTCDecoder(LETTERS)(emissions_of("_a_bb  c_aa_a_"))[0][0]
    assert best.text == "ab caa"
    assert best.words == ["ab", "caa"]
    assert [LETTERS[c] for c in best.tokens] == list("ab caa")


@pytest.mark.parametrize(
    ("tokens", "boundary", "text"),
    [
        (["_", "|", "a", "b"], None, "ab ba"),
        (["_", "\u2581a", "b", "\u2581b"], None, "a b bab"),
        (["_", " ", "a", "b"], "a", "b"),
    ],
)
def test_word_boundaries(tokens: list[str], boundary: str | None, text: str) -> None:
    labels = {"ab ba": [2, 3, 1, 3, 2], "a b bab": [1, 3, 3, 1, 2], "b": [2, 3, 2]}[text]
    if text == "a b bab":
        tokens, labels = ["_", "\u2581a", "b", "\u2581b", "a"], [1, 3, 3, 4, 2]
    rows = torch.full((2 * len(labels), len(tokens)), -20.0)
    for i, label in enumerate(labels):
        rows[2 * i, label] = 0
        rows[2 * i + 1, 0] = 0
    assert CTCDecoder(tokens, word_boundary=boundary)(rows[None])[0][0].text == text


def test_timesteps_are_those_of_the_best_path() -> None:
    best = CTCDecoder(LETTERS)(emissions_of("__aa_b__ccc_c"))[0][0]
    assert best.text == "abcc"
    assert best.timesteps == [(2, 4), (5, 6), (8, 11), (12, 13)]
    plain = CTCDecoder(LETTERS, timesteps=False, confidence=False)
    without = plain(emissions_of("__aa_b__ccc_c"))[0][0]
    assert (without.timesteps, without.confidence) == ([], [])
    assert without.tokens == best.tokens


def test_confidence_is_the_weighted_probability_of_the_frames() -> None:
    """One frame for each token, so each posterior is 1 up to what other paths take."""
    scores = torch.full((5, 5), 1e-9, dtype=torch.float64)
    for t, (label, probability) in enumerate([(2, 0.9), (0, 1.0), (3, 0.6), (0, 1.0), (4, 0.4)]):
        scores[t, label] = probability
    best = CTCDecoder(LETTERS)(scores.log()[None])[0][0]
    assert best.text == "abc"
    assert best.confidence == pytest.approx([0.9, 0.6, 0.4], abs=1e-6)


def test_confidence_weighs_frames_by_their_posterior() -> None:
    """Two frames, "a" on either or both: posteriors by hand."""
    a, blank = np.array([0.9, 0.5]), np.array([0.1, 0.5])
    paths = {"aa": a[0] * a[1], "a_": a[0] * blank[1], "_a": blank[0] * a[1]}
    first = (paths["aa"] + paths["a_"]) / sum(paths.values())
    second = (paths["aa"] + paths["_a"]) / sum(paths.values())
    expected = (first * a[0] + second * a[1]) / (first + second)
    scores = torch.tensor(np.log(np.stack([blank, [1e-30] * 2, a, [1e-30] * 2, [1e-30] * 2], 1)))
    best = CTCDecoder(LETTERS)(scores[None])[0][0]
    assert best.timesteps == [(0, 2)]
    assert best.confidence == pytest.approx([expected], abs=1e-6)
    logits = CTCDecoder(LETTERS)(scores[None] + 3, from_logits=True)[0][0]
    assert logits.confidence == pytest.approx([expected], abs=1e-6)


def test_tensors_and_hypotheses_agree() -> None:
    decoder = CTCDecoder(LETTERS, nbest=4, beam_size=8)
    emissions = random_emissions(3, 15, 5)
    lengths = torch.tensor([15, 1, 0])
    tensors = decoder.decode_tensors(emissions, lengths)
    assert tensors.tokens.shape == (3, 4, int(tensors.lengths.max()))
    assert tensors.scores.dtype == torch.float64
    assert torch.isneginf(tensors.scores[2, 1:]).all()
    past = torch.arange(tensors.tokens.size(2)) >= tensors.lengths[..., None]
    assert (tensors.tokens[past] == 0).all()
    assert (tensors.ends[past] == 0).all()
    assert decoder.hypotheses(tensors) == decoder(emissions, lengths)
    assert [len(row) for row in decoder(emissions, lengths)] == [4, 4, 1]


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_stream_gives_the_result_of_the_whole(from_logits: bool, dtype: torch.dtype) -> None:
    decoder = CTCDecoder(LETTERS, nbest=3, beam_size=10)
    emissions = random_emissions(1, 61, 5, seed=2).to(dtype)
    whole = decoder(emissions, from_logits=from_logits)[0]
    stream = decoder.stream(from_logits=from_logits)
    assert stream.hypotheses() == [Hypothesis([], "", [], 0.0, 0.0, [], [])]
    for size in (1, 3, 16, 17, 60, 61):
        stream.reset()
        for start in range(0, 61, size):
            stream.feed(emissions[0, start : start + size])
            middle = stream.hypotheses()
            assert middle == decoder(emissions[:, : start + size], from_logits=from_logits)[0]
        stream.feed(emissions[0, :0])
        assert stream.hypotheses() == whole
    assert stream.frames == 61


def test_streams_grow_beyond_the_first_memory() -> None:
    decoder = CTCDecoder(LETTERS, beam_size=3)
    emissions = random_emissions(1, 900, 5, seed=3)
    stream = decoder.stream()
    for start in range(0, 900, 11):
        stream.feed(emissions[0, start : start + 11])
    assert stream.hypotheses() == decoder(emissions)[0]


def test_one_decoder_serves_many_threads() -> None:
    decoder = CTCDecoder(LETTERS, nbest=2, beam_size=12)
    inputs = [random_emissions(2, 40, 5, seed=seed) for seed in range(6)]
    expected = [decoder(emissions) for emissions in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(20):
            if decoder(inputs[k]) != expected[k]:
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_memory_does_not_grow() -> None:
    decoder = CTCDecoder(LETTERS, nbest=4, beam_size=16)
    emissions = random_emissions(2, 30, 5)
    assert_nothing_is_kept(lambda: decoder.decode_tensors(emissions))


def test_pickles_decode_alike() -> None:
    decoder = CTCDecoder(LETTERS, nbest=2, beam_size=7, top_k=3, beam_threshold=9.5, top_p=0.99)
    emissions = random_emissions(2, 20, 5)
    again = pickle.loads(pickle.dumps(decoder))
    assert again(emissions) == decoder(emissions)
    assert (again.top_k, again.beam_threshold) == (3, 9.5)


@pytest.mark.parametrize("name", ["fusion", "beam_size", "tokens", "timesteps"])
def test_settings_stay_as_they_are(name: str) -> None:
    made = CTCDecoder(LETTERS, lexicon=["ab", "c"], beam_size=7)
    for decoder in (made, pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        before = getattr(decoder, name)
        words = f"the {name} of a decoder cannot be changed: make a new CTCDecoder"
        with pytest.raises(AttributeError, match=words):
            setattr(decoder, name, None)
        with pytest.raises(AttributeError, match=words):
            delattr(decoder, name)
        assert getattr(decoder, name) is before
        decoder.remark = "for this one"
        assert decoder(emissions_of("_ab_c"))[0] == made(emissions_of("_ab_c"))[0]


@pytest.mark.parametrize("lexicon", [None, ["ab"]])
@pytest.mark.parametrize("token", [-1, 5])
def test_tokens_of_another_decoder_are_named(token: int, lexicon: list[str] | None) -> None:
    decoder = CTCDecoder(LETTERS, lexicon=lexicon)
    decoded = decoder.decode_tensors(emissions_of("_ab_"))
    foreign = decoded._replace(tokens=torch.full_like(decoded.tokens, token))
    with pytest.raises(ValueError, match=f"token {token} is none of the 5 classes"):
        decoder.hypotheses(foreign)


def greedy_by_definition(scores: Tensor, blank: int) -> tuple[list[int], list[tuple[int, int]]]:
    labels, times = [], []
    before = blank
    for t, c in enumerate(scores.argmax(-1).tolist()):
        if c != blank and c != before:
            labels.append(c)
            times.append((t, t))
        if c != blank:
            times[-1] = (times[-1][0], t + 1)
        before = c
    return labels, times


@pytest.mark.parametrize("blank", [0, 3])
def test_greedy_decoding_equals_its_definition(blank: int) -> None:
    emissions = random_emissions(5, 30, 5, seed=4)
    lengths = [30, 0, 1, 17, 29]
    out = greedy_decode(emissions, lengths, blank=blank)
    for n, length in enumerate(lengths):
        labels, times = greedy_by_definition(emissions[n, :length], blank)
        count = int(out.lengths[n, 0])
        assert out.tokens[n, 0, :count].tolist() == labels
        spans = zip(out.starts[n, 0, :count].tolist(), out.ends[n, 0, :count].tolist(), strict=True)
        assert list(spans) == times
        assert (out.tokens[n, 0, count:] == blank).all()
        assert (out.ends[n, 0, count:] == 0).all()
        best = emissions[n, :length].max(-1).values
        assert float(out.scores[n, 0]) == pytest.approx(float(best.sum()), abs=1e-5)
        for (start, end), confidence in zip(times, out.confidence[n, 0].tolist(), strict=False):
            assert confidence == pytest.approx(float(best[start:end].exp().mean()), abs=1e-6)
    hypotheses = CTCDecoder(LETTERS, blank=blank).greedy(emissions, lengths)
    assert [len(h.tokens) for h in hypotheses] == out.lengths[:, 0].tolist()
    logits = greedy_decode(emissions * 2 + 1, lengths, blank=blank, from_logits=True)
    assert torch.equal(logits.tokens, greedy_decode(emissions, lengths, blank=blank).tokens)
    assert torch.allclose(
        logits.scores, greedy_decode((emissions * 2).log_softmax(-1), lengths, blank=blank).scores
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"blank": 5}, ValueError, "blank is 5: it must be from 0 to 4"),
        ({"blank": 0.0}, TypeError, "blank must be an int, got float"),
        ({"beam_size": 0}, ValueError, "beam_size is 0: it must be from 1"),
        ({"beam_size": 4, "nbest": 5}, ValueError, "nbest is 5: it must be from 1 to 4"),
        ({"top_k": 0}, ValueError, "top_k is 0"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5: it must be above 0 and at most 1"),
        ({"beam_threshold": -1}, ValueError, "beam_threshold is -1"),
        ({"beam_threshold": math.nan}, ValueError, "beam_threshold is nan"),
        ({"timesteps": False}, ValueError, "confidence=True needs timesteps=True"),
        ({"blank": True}, TypeError, "blank must be an int, got bool"),
        ({"top_p": True}, TypeError, "top_p must be a number, got bool"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        CTCDecoder(LETTERS, **options)


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ({"_": 0, "a": 1}, TypeError, "tokens must be a sequence in the order .* got dict"),
        ({"_", "a"}, TypeError, "tokens must be a sequence in the order .* got set"),
        (None, TypeError, "tokens must be a sequence in the order .* got NoneType"),
        ([], ValueError, "tokens is empty: at least one class"),
        (["_", 1], TypeError, r"tokens\[1\] must be a str, got int"),
    ],
)
def test_bad_tokens_are_named(tokens: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        CTCDecoder(tokens)


def test_numbers_of_numpy_are_numbers() -> None:
    decoder = CTCDecoder(LETTERS, top_p=np.float32(0.5), beam_threshold=np.int64(9))
    same = CTCDecoder(LETTERS, top_p=0.5, beam_threshold=9)
    emissions = random_emissions(2, 9, 5)
    assert decoder(emissions) == same(emissions)


@pytest.mark.parametrize("blank", [1.5, True])
def test_the_blank_of_greedy_decoding_is_an_int(blank: Any) -> None:
    with pytest.raises(TypeError, match="blank must be an int, got"):
        greedy_decode(random_emissions(1, 4, 5), blank=blank)


@pytest.mark.parametrize(
    ("emissions", "lengths", "error", "words"),
    [
        ([1.0], None, TypeError, "emissions must be a Tensor, got list"),
        (torch.zeros(1, 3, 5, dtype=torch.int64), None, TypeError, "got int64"),
        (torch.zeros(3, 5), None, ValueError, r"must be \(N, T, C\), got a shape of \(3, 5\)"),
        (torch.zeros(1, 3, 4), None, ValueError, "4 classes, and the decoder 5 tokens"),
        (torch.zeros(2, 3, 5), [3, 4], ValueError, r"lengths\[1\] is 4: it must be from 0 to 3"),
        (torch.zeros(2, 3, 5), [3], ValueError, "one for each of the 2 utterances"),
        (torch.zeros(2, 3, 5), [3.0, 1.0], TypeError, "lengths must be integers"),
        (torch.zeros(1, 3, 5), "x", TypeError, "lengths must be integers of 64 bits, got 'x'"),
        (torch.zeros(1, 3, 5), [2**70], TypeError, "lengths must be integers of 64 bits"),
        (torch.zeros(1, 3, 5, device="meta"), None, ValueError, "on the meta device"),
        (
            torch.zeros(1, 3, 5),
            torch.zeros(1, device="meta").long(),
            ValueError,
            "on the meta device",
        ),
        (torch.zeros(1, 3, 5).to_sparse(), None, TypeError, "must be a dense tensor"),
    ],
)
def test_bad_input_is_named(emissions: Any, lengths: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        CTCDecoder(LETTERS)(emissions, lengths)


def test_beams_that_are_too_wide_for_the_classes_are_refused() -> None:
    tokens = ["_", *map(str, range(50_000))]
    with pytest.raises(ValueError, match=r"beam_size is 65536 and 50001 classes .* below 2\^31"):
        CTCDecoder(tokens, beam_size=2**16)
    assert CTCDecoder(tokens, beam_size=np.int64(2**16), top_k=100).beam_size == 2**16


def test_a_stream_keeps_to_one_dtype() -> None:
    stream = CTCDecoder(LETTERS).stream()
    stream.feed(torch.zeros(2, 5))
    with pytest.raises(TypeError, match="float32 like the frames before"):
        stream.feed(torch.zeros(2, 5, dtype=torch.float64))


def test_a_stream_that_failed_says_so_until_it_is_reset() -> None:
    stream = CTCDecoder(LETTERS, hotwords=["ab"], hotword_weight=1000).stream()
    with pytest.raises(ValueError, match="it must be at most 80"):
        stream.feed(random_emissions(4, 5))
    with pytest.raises(RuntimeError, match=r"the stream failed, and only reset\(\) .* 500 nats"):
        stream.hypotheses()
    stream.reset()
    assert stream.hypotheses() == [Hypothesis([], "", [], 0.0, 0.0, [], [])]
    stream.feed(random_emissions(4, 5).double())  # of float64, which has room for the bonus
    assert stream.frames == 4


def test_greedy_without_a_finite_score_is_empty() -> None:
    emissions = random_emissions(2, 4, 5)
    emissions[0, 2] = -math.inf
    none, some = CTCDecoder(LETTERS).greedy(emissions)
    assert none == Hypothesis([], "", [], -math.inf, 0.0, [], [])
    assert some.score > -math.inf


def test_the_trie_has_no_limit_of_its_own() -> None:
    """The compiled search alone, on more frames than its first tree has room for nodes."""
    assert _C is not None
    options = _C.BeamSearchOptions(
        C=3, blank=0, beam_size=1, from_logits=False, beam_threshold=1e300, top_k=0, top_p=1.0,
        blank_skip_threshold=1.0, timesteps=False, confidence=False,
    )  # fmt: skip
    search = _C.BeamSearch(options, 2)
    rows = torch.full((3000, 3), -9.0)
    rows[::2, 1] = rows[1::2, 2] = 0
    search.advance(rows.data_ptr(), 3, 3000)
    assert search.best(1, 0, 3, 3000).longest() == 3000


def test_not_a_number_is_impossible_for_times_too() -> None:
    nothing = torch.tensor(
        [[[-2.0, -3, -0.2], [-0.5, -3, float("nan")], [-0.2, -2, -3]]], dtype=torch.float32
    )
    decoder = CTCDecoder("_ab")
    (found,), (wanted,) = (decoder(x)[0] for x in (nothing, nothing.nan_to_num(nan=-math.inf)))
    assert found.tokens == wanted.tokens == [2]
    assert found.timesteps == wanted.timesteps == [(0, 1)]
    assert found.confidence == wanted.confidence
    assert found.confidence[0] > 0.5


def test_emissions_without_memory_are_refused() -> None:
    freed = torch.zeros(1, 6, 5)
    freed.untyped_storage().resize_(0)
    with FakeTensorMode():
        fake = torch.zeros(1, 6, 5)
    decoder = CTCDecoder(LETTERS)
    for emissions in (freed, fake):
        for call in (decoder, decoder.decode_tensors, decoder.greedy, greedy_decode):
            with pytest.raises(RuntimeError, match="emissions has no memory"):
                call(emissions)
    with pytest.raises(RuntimeError, match="emissions has no memory"):
        decoder.stream().feed(fake[0])


def test_transforms_are_refused() -> None:
    emissions = torch.zeros(2, 1, 6, 5)
    for call in (CTCDecoder(LETTERS).decode_tensors, greedy_decode):
        with pytest.raises(NotImplementedError, match="does not run under"):
            torch.vmap(call)(emissions)


def test_greedy_decoding_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    emissions = random_emissions(2, 9, 5)
    compiled = torch.compile(lambda x: greedy_decode(x).scores, fullgraph=True, backend="eager")
    assert torch.equal(compiled(emissions), greedy_decode(emissions).scores)
    torch._dynamo.reset()


def test_a_stream_is_not_copied() -> None:
    stream = CTCDecoder(LETTERS).stream()
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a stream cannot be pickled or copied"):
            copier(stream)
