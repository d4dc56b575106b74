"""Beam search under torchaudio's names, against enumeration and alignments that are known."""

from __future__ import annotations

import inspect
import itertools
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastctc import NGramModel
from fastctc.compat import torchaudio as compat
from fastctc.compat.torchaudio import CTCDecoderLM, CTCDecoderLMState, ctc_decoder
from fastctc.estimate import arpa_lines
from fastctc.reference._beam_search import collapse, enumerate_paths

pytestmark = pytest.mark.usefixtures("needs_library")

TOKENS = ["-", "|", "a", "b"]
LEXICON = {"A": "a |", "AB": "a b |", "BE": "b |", "BEE": "b |"}
ARGUMENTS: dict[str, Any] = {
    "lexicon": inspect.Parameter.empty,
    "tokens": inspect.Parameter.empty,
    "lm": None,
    "lm_dict": None,
    "nbest": 1,
    "beam_size": 50,
    "beam_size_token": None,
    "beam_threshold": 50,
    "lm_weight": 2,
    "word_score": 0,
    "unk_score": -math.inf,
    "sil_score": 0,
    "log_add": False,
    "blank_token": "-",
    "sil_token": "|",
    "unk_word": "<unk>",
    "legacy_timesteps": False,  # fastctc's own
}


@pytest.fixture
def lexicon(tmp_path: Path) -> str:
    path = tmp_path / "lexicon.txt"
    path.write_text("".join(f"{word} {spelling}\n" for word, spelling in LEXICON.items()))
    return str(path)


@pytest.fixture
def words_arpa(tmp_path: Path) -> str:
    path = tmp_path / "words.arpa"
    texts = [["A", "AB"], ["BE", "A"], ["BEE", "BEE", "A"], ["AB", "BEE"]]
    path.write_text("".join(arpa_lines(texts, 2)))
    return str(path)


@pytest.fixture
def tokens_arpa(tmp_path: Path) -> str:
    path = tmp_path / "tokens.arpa"
    path.write_text("".join(arpa_lines([list("ab|a"), list("b|a"), list("aab|")], 2)))
    return str(path)


def random_emissions(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(2)


def emissions_of(path: str, tokens: list[str] = TOKENS) -> Tensor:
    """(1, T, C) log-probabilities whose best token at each frame is the path's."""
    probs = torch.full((1, len(path), len(tokens)), 0.1 / (len(tokens) - 1))
    for t, letter in enumerate(path):
        probs[0, t, tokens.index(letter)] = 0.9
    return probs.log()


def found(hypotheses: list[compat.CTCHypothesis]) -> dict[tuple[int, ...], float]:
    return {tuple(h.tokens.tolist()): h.score for h in hypotheses}


def assert_scores(hypotheses: list[compat.CTCHypothesis], expected: dict[Any, float]) -> None:
    scores = found(hypotheses)
    assert scores.keys() == expected.keys()
    assert all(scores[k] == pytest.approx(expected[k], abs=1e-4) for k in expected)
    ranked = [h.score for h in hypotheses]
    assert ranked == sorted(ranked, reverse=True)


def test_arguments_are_torchaudios() -> None:
    parameters = inspect.signature(ctc_decoder).parameters
    assert {name: p.default for name, p in parameters.items()} == ARGUMENTS
    assert compat.CTCHypothesis._fields == ("tokens", "words", "score", "timesteps")
    assert compat.CUCTCHypothesis._fields == ("tokens", "words", "score")
    assert list(inspect.signature(compat.cuda_ctc_decoder).parameters) == [
        "tokens", "nbest", "beam_size", "blank_skip_threshold"
    ]  # fmt: skip


def test_without_a_lexicon_scores_are_sums_over_all_paths() -> None:
    """Emissions are logits, as many scripts have them."""
    emissions = random_emissions(2, 5, 4)
    decoder = ctc_decoder(None, TOKENS, nbest=500, beam_size=500, beam_threshold=1000)
    for row, results in zip(emissions, decoder(emissions), strict=True):
        assert_scores(results, enumerate_paths(row.double().numpy()))
        assert all(h.words == [] for h in results)
    best = decoder(emissions, torch.tensor([5, 2]))[1][0]
    assert (best.tokens.dtype, best.timesteps.dtype) == (torch.int64, torch.int32)
    assert best.tokens.shape == best.timesteps.shape
    exact = enumerate_paths(emissions[1, :2].double().numpy())
    assert tuple(best.tokens.tolist()) == max(exact, key=lambda labels: exact[labels])


def test_silence_has_its_score_on_each_of_its_frames() -> None:
    emissions = random_emissions(1, 5, 4, seed=1)
    expected: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(4), repeat=5):
        score = sum(float(emissions[0, t, c]) for t, c in enumerate(path)) - 1.5 * path.count(1)
        labels = collapse(path, 0)
        expected[labels] = float(np.logaddexp(expected.get(labels, -math.inf), score))
    decoder = ctc_decoder(None, TOKENS, sil_score=-1.5, nbest=500, beam_size=500)
    before = emissions.clone()
    assert_scores(decoder(emissions)[0], expected)
    assert torch.equal(emissions, before)


def test_a_model_of_tokens(tokens_arpa: str) -> None:
    emissions = random_emissions(1, 5, 4, seed=2)
    model = NGramModel.from_arpa(tokens_arpa)
    expected = {
        labels: score + 1.7 * model.score([TOKENS[c] for c in labels]) / math.log(10)
        for labels, score in enumerate_paths(emissions[0].double().numpy()).items()
    }
    decoder = ctc_decoder(None, TOKENS, tokens_arpa, lm_weight=1.7, nbest=500, beam_size=500)
    assert_scores(decoder(emissions)[0], expected)


def spelled_words(labels: tuple[int, ...], model: NGramModel | None) -> list[str] | None:
    """The words of some tokens, of BE and BEE the one that the model likes best; None: no words."""
    words: list[str] = []
    for letters in "".join(TOKENS[c] for c in labels).split("|"):
        fitting = [w for w, s in LEXICON.items() if s.replace(" ", "").strip("|") == letters]
        if letters and not fitting:
            return None
        if letters:
            score = (lambda w: 0.0) if model is None else _next_score(model, words)
            words.append(max(fitting, key=score))
    return words


def _next_score(model: NGramModel, words: list[str]) -> Any:
    return lambda w: model.score([*words, w], eos=False)


@pytest.mark.parametrize("with_model", [False, True])
def test_a_lexicon_allows_its_words(lexicon: str, words_arpa: str, with_model: bool) -> None:
    emissions = random_emissions(1, 5, 4, seed=3)
    model = NGramModel.from_arpa(words_arpa) if with_model else None
    labellings: dict[tuple[str, ...], dict[tuple[int, ...], float]] = {}
    for labels, score in enumerate_paths(emissions[0].double().numpy()).items():
        spelled = spelled_words(labels, model)
        if spelled is not None:
            lm = 0.0 if model is None else 1.3 * model.score(spelled) / math.log(10)
            total = score + lm + 0.7 * len(spelled)
            labellings.setdefault(tuple(spelled), {})[labels] = total
    results = ctc_decoder(
        lexicon, TOKENS, words_arpa if with_model else None, lm_weight=1.3, word_score=0.7,
        nbest=500, beam_size=500,
    )(emissions)[0]  # fmt: skip
    assert_words(results, labellings)


def assert_words(
    results: list[compat.CTCHypothesis], labellings: dict[Any, dict[Any, float]]
) -> None:
    """Each sequence of words once, with the score of all its labellings and the tokens of one."""
    assert {tuple(h.words) for h in results} == labellings.keys()
    assert len(results) == len(labellings)
    for h in results:
        scores = labellings[tuple(h.words)]
        assert h.score == pytest.approx(np.logaddexp.reduce(list(scores.values())), abs=1e-4)
        best = max(scores.values())
        assert scores[tuple(h.tokens.tolist())] == pytest.approx(best, abs=1e-4)
    ranked = [h.score for h in results]
    assert ranked == sorted(ranked, reverse=True)


def test_unknown_words_have_a_price_and_a_name(lexicon: str) -> None:
    emissions = random_emissions(1, 4, 4, seed=4)
    labellings: dict[tuple[str, ...], dict[tuple[int, ...], float]] = {}
    for labels, score in enumerate_paths(emissions[0].double().numpy()).items():
        parts = [p for p in "".join(TOKENS[c] for c in labels).split("|") if p]
        words = [(spelled_words(tuple(map(TOKENS.index, p)), None) or ["???"])[0] for p in parts]
        unknown = words.count("???")
        total = score + 0.5 * (len(words) - unknown) - 2.0 * unknown
        labellings.setdefault(tuple(words), {})[labels] = total
    decoder = ctc_decoder(
        lexicon, TOKENS, word_score=0.5, unk_score=-2.0, unk_word="???", nbest=500, beam_size=500
    )
    assert_words(decoder(emissions)[0], labellings)
    (best,) = ctc_decoder(lexicon, TOKENS, unk_score=-1.0, unk_word="???")(
        emissions_of("-b-a-|-a-b-")
    )[0]
    assert best.words == ["???", "AB"]


def test_nothing_found_is_an_empty_hypothesis(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("LONG a b a b a b |\n")
    (nothing,) = ctc_decoder(str(path), TOKENS, beam_size=1)(emissions_of("-a--"))[0]
    assert nothing.tokens.tolist() == nothing.timesteps.tolist() == nothing.words == []
    assert nothing.score == -math.inf


def test_timesteps_are_the_first_frames() -> None:
    path = "--aa-b||-b"
    (best,) = ctc_decoder(None, TOKENS)(emissions_of(path))[0]
    assert best.tokens.tolist() == [2, 3, 1, 3]
    assert best.timesteps.tolist() == [2, 5, 6, 9]


@pytest.mark.parametrize(
    ("path", "tokens", "timesteps"),
    [
        # What torchaudio makes of these paths: frames from 1, silence at 0 and behind the end.
        ("--aa-b||-b", "|ab|b|", [0, 3, 6, 7, 10, 11]),
        ("|a-b|", "|ab|", [0, 2, 4, 5]),
        ("-|a-b|-", "||ab||", [0, 2, 3, 5, 6, 8]),
        ("---", "||", [0, 4]),
        ("|||", "|", [0]),
    ],
)
def test_legacy_timesteps(path: str, tokens: str, timesteps: list[int]) -> None:
    decoder = ctc_decoder(None, TOKENS, legacy_timesteps=True)
    (best,) = decoder(emissions_of(path))[0]
    assert "".join(decoder.idxs_to_tokens(best.tokens)) == tokens
    assert best.timesteps.tolist() == timesteps


class Counted(CTCDecoderLM):
    """A model in Python with the scores of an ARPA file."""

    def __init__(self, path: str, words: list[str]) -> None:
        self.model = NGramModel.from_arpa(path)
        self.words = words
        self.read: dict[CTCDecoderLMState, list[str]] = {}

    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        assert not start_with_nothing
        state = CTCDecoderLMState()
        self.read[state] = []
        return state

    def score(
        self, state: CTCDecoderLMState, usr_token_idx: int
    ) -> tuple[CTCDecoderLMState, float]:
        after = state.child(usr_token_idx)
        assert state.children[usr_token_idx] is after
        self.read[after] = [*self.read[state], self.words[usr_token_idx]]
        return after, self.model.word_scores(self.read[after], eos=False)[-1].score / math.log(10)

    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        end = self.model.word_scores(self.read[state])[-1].score
        return state, end / math.log(10)


@pytest.mark.parametrize("method", ["score", "finish"])
@pytest.mark.parametrize("spelled", [False, True])
def test_a_model_in_python_that_scores_nan_is_named(
    method: str, spelled: bool, lexicon: str, monkeypatch: pytest.MonkeyPatch, words_arpa: str
) -> None:
    names = [*LEXICON, "<unk>"] if spelled else TOKENS
    model = Counted(words_arpa, names)
    monkeypatch.setattr(model, method, lambda state, *index: (state, math.nan))
    if method == "finish":
        monkeypatch.setattr(model, "score", lambda state, index: (state, 0.0))
    decoder = ctc_decoder(lexicon if spelled else None, TOKENS, model)
    with pytest.raises(ValueError, match=rf"language model's {method}.* is nan"):
        decoder(emissions_of("-a-|-"))


@pytest.mark.parametrize("unk_score", [-math.inf, -1.0])
@pytest.mark.parametrize("unit", ["tokens", "words", "words of lm_dict"])
def test_models_in_python_equal_those_of_files(
    unit: str, unk_score: float, lexicon: str, words_arpa: str, tokens_arpa: str, tmp_path: Path
) -> None:
    """Streams too; words are numbered by the lexicon, or by lm_dict."""
    emissions = random_emissions(2, 9, 4, seed=5)
    names = [*LEXICON, "<unk>"]
    settings: dict[str, Any] = {
        "lm_weight": 1.4, "word_score": 0.3, "unk_score": unk_score, "sil_score": 0.2,
        "nbest": 20, "beam_size": 20,
    }  # fmt: skip
    if unit == "tokens":
        words, arpa, lexicon_, names = None, tokens_arpa, None, TOKENS
    else:
        words, arpa, lexicon_ = None, words_arpa, lexicon
        if unit == "words of lm_dict":
            names = ["BEE", "<unk>", "AB", "never", "A", "BE"]
            words = str(tmp_path / "words.txt")
            Path(words).write_text("\n".join(names))
    custom = ctc_decoder(lexicon_, TOKENS, Counted(arpa, names), words, **settings)
    compiled = ctc_decoder(lexicon_, TOKENS, arpa, **settings)
    lengths = torch.tensor([9, 6])
    for ours, theirs in zip(custom(emissions, lengths), compiled(emissions, lengths), strict=True):
        assert_scores(ours, found(theirs))
        wanted = {tuple(h.tokens.tolist()): h for h in theirs}
        for h in ours:
            twin = wanted[tuple(h.tokens.tolist())]
            assert h.words == twin.words
            assert h.timesteps.tolist() == twin.timesteps.tolist()
    custom.decode_begin()
    for start in (0, 3, 4):
        custom.decode_step(emissions[0, start : {0: 3, 3: 4, 4: 9}[start]])
    custom.decode_end()
    assert found(custom.get_final_hypothesis()) == found(custom(emissions)[0])


@pytest.mark.parametrize("size", [1, 4, 11])
def test_a_stream_gives_the_result_of_the_whole(size: int, lexicon: str, words_arpa: str) -> None:
    emissions = random_emissions(1, 11, 4, seed=6)
    decoder = ctc_decoder(
        lexicon, TOKENS, words_arpa, nbest=3, sil_score=-0.5, legacy_timesteps=True
    )
    whole = decoder(emissions)[0]
    for _ in range(2):
        decoder.decode_begin()
        for start in range(0, 11, size):
            decoder.decode_step(emissions[0, start : start + size])
        decoder.decode_end()
        results = decoder.get_final_hypothesis()
        assert len(results) == len(whole)
        for ours, theirs in zip(results, whole, strict=True):
            assert (ours.words, ours.score) == (theirs.words, theirs.score)
            assert torch.equal(ours.tokens, theirs.tokens)
            assert torch.equal(ours.timesteps, theirs.timesteps)
    with pytest.raises(RuntimeError, match="decode_step comes after decode_begin"):
        ctc_decoder(None, TOKENS).decode_step(emissions[0])


def test_tokens_and_lexicons_come_from_files(tmp_path: Path, lexicon: str) -> None:
    """Several names on a line are one token, and `<unk>` is no word."""
    file = tmp_path / "tokens.txt"
    file.write_text("-\n| <sil>\n\na A\nb\n")
    words = tmp_path / "more.txt"
    words.write_text("AB A b <sil>\n<unk> what ever\nA a\n")
    decoder = ctc_decoder(str(words), str(file))
    assert decoder.idxs_to_tokens(torch.tensor([0, 1, 2, 3])) == TOKENS
    (best,) = decoder(emissions_of("-a-b|-a"))[0]
    assert best.words == ["AB", "A"]
    assert (decoder.nbest, decoder.blank) == (1, 0)


def test_word_pieces_have_boundaries_of_their_own(tmp_path: Path) -> None:
    tokens = ["-", "|", "\u2581a", "b", "\u2581b"]
    path = tmp_path / "pieces.txt"
    path.write_text("ab \u2581a b\na \u2581a\nb \u2581b\n")
    probs = torch.full((1, 4, 5), 0.05)
    for t, c in enumerate((2, 3, 4, 2)):
        probs[0, t, c] = 0.8
    (best,) = ctc_decoder(str(path), tokens)(probs.log())[0]
    assert best.words == ["ab", "b", "a"]


@pytest.mark.parametrize("spelled", [False, True])
def test_another_default_device_changes_nothing(spelled: bool, lexicon: str) -> None:
    emissions = emissions_of("-a-b|-a")
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            decoder = ctc_decoder(lexicon if spelled else None, TOKENS)
            decoder.decode_begin()
            assert decoder.get_final_hypothesis()[0].tokens.shape == (0,)
            found.append(decoder(emissions)[0][0])
    assert found[0][1:3] == found[1][1:3]
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.equal(found[0].timesteps, found[1].timesteps)


def test_the_cuda_decoder_on_the_cpu(tmp_path: Path) -> None:
    log_probs = random_emissions(2, 5, 4, seed=7).log_softmax(-1)
    lengths = torch.tensor([5, 3], dtype=torch.int32)
    decoder = compat.cuda_ctc_decoder(TOKENS, nbest=3, beam_size=99, blank_skip_threshold=1.0)
    assert decoder.beam_size == 4
    for n, results in enumerate(decoder(log_probs, lengths)):
        exact = enumerate_paths(log_probs[n, : int(lengths[n])].double().numpy())
        assert len(results) == 3
        for h in results:
            assert h.score <= exact[tuple(h.tokens)] + 1e-5
            assert h.words == [TOKENS[c] for c in h.tokens]
    skipping = compat.CUCTCDecoder(TOKENS, blank_skip_threshold=0.8)
    probs = torch.tensor([[[0.9, 0.01, 0.08, 0.01], [0.1, 0.1, 0.7, 0.1]]])
    ((best,),) = skipping(probs.log(), [2])
    assert best.tokens == [2]
    assert best.score == pytest.approx(math.log(0.9 * 0.7), abs=1e-5)
    with pytest.raises(ValueError, match="blank_skip_threshold is 2"):
        compat.cuda_ctc_decoder(TOKENS, blank_skip_threshold=2)
    with pytest.raises(TypeError, match=r"vocab_list must be a sequence in the order .* got dict"):
        compat.cuda_ctc_decoder({"-": 0, "a": 1})  # type: ignore[arg-type]
    (tmp_path / "latin1.txt").write_bytes(b"-\n\xe9\n")
    with pytest.raises(ValueError, match=r"latin1\.txt is not UTF-8 text"):
        compat.cuda_ctc_decoder(tmp_path / "latin1.txt")
    with pytest.raises(TypeError, match="beam_size must be an int, got str"):
        compat.cuda_ctc_decoder(TOKENS, beam_size="9")  # type: ignore[arg-type]


def test_one_decoder_serves_many_threads(lexicon: str, words_arpa: str) -> None:
    decoder = ctc_decoder(lexicon, TOKENS, words_arpa, nbest=3)
    inputs = [random_emissions(2, 30, 4, seed=seed) for seed in range(4)]
    expected = [[found(r) for r in decoder(emissions)] for emissions in inputs]
    right: list[bool] = []

    def work(k: int) -> None:
        right.extend([found(r) for r in decoder(inputs[k])] == expected[k] for _ in range(20))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [True] * 80


def test_mistakes_get_a_sentence(tmp_path: Path, lexicon: str, words_arpa: str) -> None:
    with pytest.raises(ValueError, match="blank_token is '-', which is none of the tokens"):
        ctc_decoder(None, ["_", "|", "a"])
    with pytest.raises(ValueError, match=r"sil_token is '\|', which is none of the tokens"):
        ctc_decoder(None, ["-", " ", "a"])
    with pytest.raises(ValueError, match="'a' is listed twice"):
        ctc_decoder(None, ["-", "|", "a", "a"])
    with pytest.raises(ValueError, match="nbest is 0: it must be at least 1"):
        ctc_decoder(lexicon, TOKENS, nbest=0)
    with pytest.raises(TypeError, match="nbest must be an int, got str"):
        ctc_decoder(None, TOKENS, nbest="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unk_score must be a number, got str"):
        ctc_decoder(lexicon, TOKENS, unk_score="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"tokens\[0\] must be a str, got int"):
        ctc_decoder(None, [1, 2])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="sil_token is '-', which is the blank: with a lexicon"):
        ctc_decoder(lexicon, TOKENS, sil_token="-")
    assert ctc_decoder(None, TOKENS, sil_token="-")(torch.zeros(1, 2, 4))
    with pytest.raises(TypeError, match="lm must be a path, a CTCDecoderLM or None, not int"):
        ctc_decoder(None, TOKENS, 3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"fastctc downloads nothing.*librispeech"):
        compat.download_pretrained_files("librispeech")
    wrong = tmp_path / "wrong.txt"
    for text, words in (
        ("A a x |", "'A' is spelled with 'x', which is no token"),
        ("A", "'A' has no spelling"),
        ("", "no word in the lexicon"),
    ):
        wrong.write_text(text)
        with pytest.raises(ValueError, match=words):
            ctc_decoder(str(wrong), TOKENS)
    wrong.write_text("A\nAB\n<unk>\n")
    with pytest.raises(ValueError, match="lm_dict has no 'BE', which the decoder needs"):
        ctc_decoder(lexicon, TOKENS, Counted(words_arpa, []), str(wrong))
    wrong.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ValueError, match="kenlm"):
        ctc_decoder(None, TOKENS, str(wrong))
    wrong.write_text("AB a b\n")
    with pytest.warns(UserWarning, match="no word of the lexicon is spelled with the silence"):
        ctc_decoder(str(wrong), TOKENS)
    with pytest.raises(ValueError, match="3 classes, and the decoder 4 tokens"):
        ctc_decoder(None, TOKENS)(torch.zeros(1, 2, 3))
