"""torchaudio's CTC decoder, which is flashlight's, as arguments of fastctc's."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from fastctc import _decode
from fastctc._arguments import number_in, real_number, whole_number, whole_number_in
from fastctc._fusion import check_weight
from fastctc.align import forced_align
from fastctc.compat._custom_lm import CTCDecoderLM, CustomSearch
from fastctc.compat._decoder_files import (
    Path,
    in_indices,
    read_lexicon,
    read_tokens,
    word_boundary,
)
from fastctc.decoder import CTCDecoder as BeamSearch
from fastctc.decoder import CTCStream, Hypothesis
from fastctc.lexicon import Lexicon
from fastctc.lm import NGramModel

_LN_10 = math.log(10)


class CTCHypothesis(NamedTuple):
    """One hypothesis of an utterance.

    Attributes:
        tokens: (L,) int64 token indices.
        words: its words; empty without a lexicon.
        score: what the emissions, the language model and the word scores add up to: natural logs
            of the emissions, and `lm_weight` times log10 of the n-gram model.
        timesteps: (L,) int32, the first frame of each token on the most probable path.

    With a lexicon a hypothesis is a sequence of words. Its score is that of all labellings in the
    beam that spell them, with any silences; tokens and timesteps are those of the best one.
    """

    tokens: Tensor
    words: list[str]
    score: float
    timesteps: Tensor


class CTCDecoder:
    """Made by `ctc_decoder`. Batches may be decoded from many threads, one stream at a time."""

    def __init__(
        self,
        search: BeamSearch | CustomSearch,
        tokens: Sequence[str],
        *,
        nbest: int,
        blank: int,
        silence: int,
        sil_score: float,
        unk_word: str,
        writes_unknown: bool,
        has_lexicon: bool,
        legacy_timesteps: bool,
    ) -> None:
        self.nbest = nbest
        self.blank = blank
        self._search = search
        self._tokens = list(tokens)
        self._silence = silence
        self._sil_score = sil_score
        self._unk_word = unk_word
        self._writes_unknown = writes_unknown
        self._has_lexicon = has_lexicon
        self._legacy_timesteps = legacy_timesteps
        self._stream: CTCStream | None = None
        self._kept: list[Tensor] | None = None  # what a stream has been given

    def __call__(
        self, emissions: Tensor, lengths: Tensor | None = None
    ) -> list[list[CTCHypothesis]]:
        """Decode a batch.

        Args:
            emissions: (N, T, C) natural logs, normalised or not, of any float type, on any device.
            lengths: (N,) frames of each utterance. None: T.

        Returns:
            For each utterance at most `nbest` hypotheses, best first; with a lexicon their words
            differ. Where the lexicon leaves none, there is an empty one with a score of -inf.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: a shape or a length is out of range.
        """
        emissions = _decode.check_emissions(emissions, (3,), len(self._tokens))
        batch, frames, _ = emissions.shape
        lengths = _decode.check_lengths(lengths, batch, frames)
        emissions = self._with_silence_score(emissions)
        found = self._search(emissions, lengths)
        return [
            self._results(hypotheses, row[:length])
            for hypotheses, row, length in zip(found, emissions, lengths.tolist(), strict=True)
        ]

    def decode_begin(self) -> None:
        """Begin an utterance that arrives in pieces."""
        self._stream = None if isinstance(self._search, CustomSearch) else self._search.stream()
        self._kept = []

    def decode_step(self, emissions: Tensor) -> None:
        """Take the next frames: (T, C), of one dtype throughout the utterance."""
        if self._kept is None:
            raise RuntimeError("decode_step comes after decode_begin")
        emissions = _decode.check_emissions(emissions, (2,), len(self._tokens))
        emissions = self._with_silence_score(emissions)
        if self._stream is not None:
            self._stream.feed(emissions)
        self._kept.append(emissions.clone())

    def decode_end(self) -> None:
        """Nothing: `get_final_hypothesis` ends the text by itself, and a stream may go on."""

    def get_final_hypothesis(self) -> list[CTCHypothesis]:
        """At most `nbest` hypotheses of what came since `decode_begin`, best first."""
        if self._kept is None:
            raise RuntimeError("get_final_hypothesis comes after decode_begin")
        nothing = torch.empty((0, len(self._tokens)), device="cpu")
        emissions = torch.cat(self._kept) if self._kept else nothing
        self._kept = [emissions]
        if self._stream is not None:
            found = self._stream.hypotheses()
        else:
            (found,) = self._search(emissions[None])
        return self._results(found, emissions)

    def idxs_to_tokens(self, idxs: Tensor) -> list[str]:
        """The tokens that some indices stand for."""
        most = len(self._tokens) - 1
        return [
            self._tokens[whole_number_in(f"idxs[{n}]", idx, 0, most)] for n, idx in enumerate(idxs)
        ]

    def _with_silence_score(self, emissions: Tensor) -> Tensor:
        """Each frame of silence on a path adds the score: as if the network had given it."""
        if self._sil_score == 0:
            return emissions
        emissions = emissions.clone()
        emissions[..., self._silence] += self._sil_score
        return emissions

    def _results(self, found: Sequence[Hypothesis], emissions: Tensor) -> list[CTCHypothesis]:
        """The results of one utterance with its (T, C) emissions."""
        chosen = [(hypothesis, hypothesis.score, list[str]()) for hypothesis in found]
        if self._has_lexicon:
            chosen = self._with_distinct_words(found)
        nothing = Hypothesis([], "", [], -math.inf, 0.0, [], [])
        return [
            self._result(*one, emissions)
            for one in chosen[: self.nbest] or [(nothing, nothing.score, [])]
        ]

    def _with_distinct_words(
        self, found: Iterable[Hypothesis]
    ) -> list[tuple[Hypothesis, float, list[str]]]:
        """For each sequence of words its best labelling, and the score of all of them together."""
        texts: dict[tuple[str, ...], tuple[Hypothesis, float]] = {}
        for hypothesis in found:
            words = tuple(self._words(hypothesis))
            best, score = texts.get(words, (hypothesis, -math.inf))
            texts[words] = best, float(np.logaddexp(score, hypothesis.score))
        ranked = sorted(texts.items(), key=lambda item: -item[1][1])
        return [(best, score, list(words)) for words, (best, score) in ranked]

    def _result(
        self, found: Hypothesis, score: float, words: list[str], emissions: Tensor
    ) -> CTCHypothesis:
        tokens, spans = found.tokens, found.timesteps or self._spans(found.tokens, emissions)
        starts = [start for start, _ in spans]
        if self._legacy_timesteps:
            tokens, starts = self._between_silences(tokens, spans, len(emissions))
        return CTCHypothesis(
            torch.tensor(tokens, dtype=torch.int64, device="cpu"),
            words,
            score,
            torch.tensor(starts, dtype=torch.int32, device="cpu"),
        )

    def _spans(self, tokens: list[int], emissions: Tensor) -> list[tuple[int, int]]:
        if not tokens:
            return []
        # NaN counts as -inf in the search too
        scores = emissions.cpu().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        labels = torch.tensor(tokens, device="cpu")
        path, _ = forced_align(scores, labels, blank=self.blank, on_impossible="mark")
        spans, start = [], 0
        for token, run in itertools.groupby(path.tolist()):
            end = start + len(list(run))
            if token not in (self.blank, -1):
                spans.append((start, end))
            start = end
        return spans

    def _between_silences(
        self, tokens: list[int], spans: Sequence[tuple[int, int]], frames: int
    ) -> tuple[list[int], list[int]]:
        """A frame of silence before the first one and after the last one, counted with the rest.

        It is one token with silence that reaches up to it.
        """
        tokens, starts = list(tokens), [start + 1 for start, _ in spans]
        last_end = spans[-1][1] if spans else -1
        if not (tokens and tokens[-1] == self._silence and last_end == frames):
            tokens.append(self._silence)
            starts.append(frames + 1)
        if tokens[0] == self._silence and starts[0] == 1:
            starts[0] = 0
        else:
            tokens.insert(0, self._silence)
            starts.insert(0, 0)
        return tokens, starts

    def _words(self, found: Hypothesis) -> list[str]:
        if isinstance(self._search, CustomSearch) or not self._writes_unknown:
            return found.words
        assert self._search.fusion is not None
        words = self._search.fusion.trace(found.tokens).words
        return [word.text if word.known else self._unk_word for word in words]


def ctc_decoder(
    lexicon: Path | None,
    tokens: Path | Sequence[str],
    lm: Path | NGramModel | CTCDecoderLM | None = None,
    lm_dict: Path | None = None,
    nbest: int = 1,
    beam_size: int = 50,
    beam_size_token: int | None = None,
    beam_threshold: float = 50,
    lm_weight: float = 2,
    word_score: float = 0,
    unk_score: float = float("-inf"),
    sil_score: float = 0,
    log_add: bool = False,
    blank_token: str = "-",
    sil_token: str = "|",
    unk_word: str = "<unk>",
    *,
    legacy_timesteps: bool = False,
) -> CTCDecoder:
    """A beam search with torchaudio's arguments.

    Args:
        lexicon: file of words with their spellings, ``hello h e l l o |``; None: any tokens.
        tokens: tokens, or a file with one index on each line, which may have several names.
        lm: ARPA file of an n-gram model, plain or gzip: of words with a lexicon, else of tokens.
            Or a `CTCDecoderLM`, which is asked from Python, slowly.
        lm_dict: file of the words that a `CTCDecoderLM` knows, in order of their indices.
        nbest: hypotheses returned.
        beam_size: labellings kept after each frame.
        beam_size_token: only so many best tokens of a frame make new labellings. None: all.
        beam_threshold: nats below the frame's best from which a labelling is dropped.
        lm_weight: what the model's log10 (an ARPA file) or its scores (`CTCDecoderLM`) are
            multiplied by.
        word_score: added for each word of the lexicon.
        unk_score: added for each word outside of it; -inf forbids them.
        sil_score: added for each frame of silence.
        log_add: nothing: probabilities of paths are always summed.
        blank_token: the blank.
        sil_token: silence, which stands between words.
        unk_word: what words outside the lexicon are called.
        legacy_timesteps: count frames from 1, and put silence at both ends, as torchaudio does.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range or does not fit the others, or a file is broken.
        OSError: a file cannot be read.
    """
    indices = read_tokens(tokens)
    names = list({index: name for name, index in reversed(indices.items())}.values())[::-1]
    for argument, token in (("blank_token", blank_token), ("sil_token", sil_token)):
        if token not in indices:
            raise ValueError(f"{argument} is {token!r}, which is none of the tokens")
    nbest = whole_number("nbest", nbest)
    beam_size = whole_number_in("beam_size", beam_size, 1, 2**16)
    if nbest < 1:
        raise ValueError(f"nbest is {nbest}: it must be at least 1")
    lm_weight = check_weight("lm_weight", lm_weight)
    word_score = check_weight("word_score", word_score)
    sil_score = check_weight("sil_score", sil_score)
    unk_score = real_number("unk_score", unk_score)
    if not unk_score < math.inf:
        raise ValueError(f"unk_score is {unk_score}: it must be below infinity")
    if beam_size_token is not None:
        beam_size_token = whole_number_in("beam_size_token", beam_size_token, 0, 2**31) or None
    beam_threshold = number_in("beam_threshold", beam_threshold, 0, math.inf)
    if lm is not None and not isinstance(lm, (str, os.PathLike, NGramModel, CTCDecoderLM)):
        raise TypeError(f"lm must be a path, a CTCDecoderLM or None, not {type(lm).__name__}")
    blank, silence = indices[blank_token], indices[sil_token]
    if lexicon is not None and silence == blank:
        raise ValueError(
            f"sil_token is {sil_token!r}, which is the blank: with a lexicon, words need a "
            "boundary of their own"
        )
    spellings = None if lexicon is None else read_lexicon(lexicon, indices, names)
    boundary = word_boundary(names, names[silence], spellings)
    search: BeamSearch | CustomSearch
    if isinstance(lm, CTCDecoderLM):
        if boundary != names[silence]:
            raise ValueError(
                f"lm is a CTCDecoderLM: the lexicon must end words with the silence {sil_token!r}"
            )
        search = CustomSearch(
            lm,
            blank=blank,
            silence=silence,
            beam_size=beam_size,
            beam_size_token=beam_size_token,
            beam_threshold=beam_threshold,
            lm_weight=lm_weight,
            word_score=word_score,
            unk_score=unk_score,
            unk_word=unk_word,
            spellings=None if spellings is None else in_indices(spellings, indices),
            words=None if lm_dict is None else list(read_tokens(lm_dict, "lm_dict")),
        )
    else:
        search = BeamSearch(
            names,
            blank=blank,
            beam_size=beam_size,
            nbest=min(nbest, beam_size) if spellings is None else beam_size,
            beam_threshold=beam_threshold,
            top_k=beam_size_token,
            lm=lm,
            lm_weight=lm_weight / _LN_10,
            lm_unit=None if lm is None else "token" if spellings is None else "word",
            word_score=0.0 if spellings is None else word_score,
            lexicon=None if spellings is None else Lexicon(spellings),
            unknown_score=None if spellings is None else unk_score - word_score,
            word_boundary="" if silence == blank else boundary,
            timesteps=spellings is None,
            confidence=False,
        )
    return CTCDecoder(
        search,
        names,
        nbest=nbest,
        blank=blank,
        silence=silence,
        sil_score=sil_score,
        unk_word=unk_word,
        writes_unknown=unk_score > -math.inf,
        has_lexicon=spellings is not None,
        legacy_timesteps=legacy_timesteps,
    )


def download_pretrained_files(model: str) -> NoReturn:
    """Nothing is downloaded.

    Raises:
        RuntimeError: always; it says what to do.
    """
    raise RuntimeError(
        f"fastctc downloads nothing, so there are no files of {model!r}: give ctc_decoder the "
        "paths of your own lexicon, tokens and ARPA file. A kenlm binary cannot be read; take the "
        "ARPA file it was made from"
    )
