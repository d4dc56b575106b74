"""CTC decoding: from a network's emissions to texts."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastctc import _decode, _decode_cuda
from fastctc._arguments import flag, number_in, whole_number_in
from fastctc._checks import DTYPE_CODES
from fastctc._decode import DecodedBatch
from fastctc._fusion import Fusion, check_scores
from fastctc._spelling import check_classes, check_tokens, find_boundary
from fastctc.lexicon import Lexicon
from fastctc.lm import NGramModel

__all__ = ["CTCDecoder", "CTCStream", "DecodedBatch", "Hypothesis", "greedy_decode"]

Words = Iterable[str] | Mapping[str, Any]

# Attributes of a decoder that its search was made from.
_SETTINGS = frozenset(
    (
        *("tokens", "blank", "beam_size", "nbest", "beam_threshold", "top_k", "top_p"),
        *("blank_skip_threshold", "word_boundary", "fusion", "timesteps", "confidence"),
    )
)


@dataclass(frozen=True)
class Hypothesis:
    """One labelling of an utterance.

    Attributes:
        tokens: its classes.
        text: its tokens put together, word boundaries as spaces.
        words: the words of the text.
        score: natural log of the labelling's probability as the beam saw it, and what language
            model, word score and hotwords add. Never above the exact sum over all paths.
        lm_score: what language model, word score and hotwords added.
        timesteps: for each token its first frame and the frame after its last one, on the most
            probable path that spells these tokens. Empty where not asked for.
        confidence: for each token its probability on these frames, averaged with the posterior
            weights of the labelling's paths. Empty where not asked for.
    """

    tokens: list[int]
    text: str
    words: list[str]
    score: float
    lm_score: float
    timesteps: list[tuple[int, int]]
    confidence: list[float]


def greedy_decode(
    emissions: Tensor, lengths: Any = None, *, blank: int = 0, from_logits: bool = False
) -> DecodedBatch:
    """The labels that the best class of each frame spells: repeats merged, blanks left out.

    Args:
        emissions: (N, T, C) natural-log probabilities, or logits with ``from_logits``; float16,
            bfloat16, float32 or float64, on any device.
        lengths: (N,) frames of each utterance, a tensor or a list. None: all T.
        blank: index of the blank class.
        from_logits: scores and confidences are those of a log-softmax; the labels are the same.

    Returns:
        One labelling for each utterance, nbest = 1: its score is that of the path, its confidences
        are the mean probabilities of the labels' frames. NaN is the best class of its frame, and
        makes the score NaN. On a CUDA device nothing is waited for: L is T, and a length there
        that is out of range leaves its row with a score of -inf.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a shape, a length or the blank is out of range.
    """
    emissions = _decode.check_emissions(emissions, (3,))
    backend = _decode_cuda.backend_for(emissions, 1)
    if backend is None:
        lengths = _decode.check_lengths(lengths, emissions.size(0), emissions.size(1))
        lengths = lengths.to(emissions.device)
    else:
        lengths = _decode_cuda.check_lengths(backend, lengths, emissions)
    blank = whole_number_in("blank", blank, 0, emissions.size(-1) - 1)
    if emissions.size(1) == 0:
        out = _decode.empty_batch(emissions.size(0), 1, 0, blank)
        out.scores.zero_()
        return DecodedBatch(*(tensor.to(emissions.device) for tensor in out))
    decoded = _decode.greedy(emissions, lengths, blank, flag("from_logits", from_logits))
    return decoded if backend is not None else _decode.as_wide_as_the_longest(decoded)


class CTCDecoder:
    """Prefix beam search that sums the probabilities of all paths of a labelling.

    With a beam wide enough the best hypothesis is the most probable labelling, and its score minus
    its CTC loss; a narrower beam never claims more. Of equal scores the shorter labelling comes
    first, then the one whose tokens come first in lexicographic order; scores that differ by less
    than rounding (about 1e-6 of float32 sums) may be ordered either way.

    One decoder may be used from many threads at once, and be pickled.

    Args:
        tokens: what each class stands for, C strings, that of the blank included; or one string of
            C characters.
        blank: index of the blank class.
        beam_size: labellings kept after each frame.
        nbest: labellings returned, at most `beam_size`.
        beam_threshold: nats below the frame's best from which a labelling is dropped. None: float32
            sums end at 87, float64 ones at 708.
        top_k: only this many best classes of a frame, blank counted, make new labellings. From
            ``beam_size + 2`` on this changes nothing, without `lm`, `lexicon` and `hotwords`. With
            them, on CUDA, it is at most 256 or ``beam_size + 2``, whichever is more.
        top_p: only the best classes that together reach this probability make new labellings.
        blank_skip_threshold: a frame whose blank is more probable than this counts as blank.
        lm: an n-gram model, or the path of its ARPA file, plain or gzip. Its words are tokens, or
            words where less than half of them are; see `lm_unit`.
        lm_weight: what the model's natural logs are multiplied by; 0 is without it.
        lm_unit: "token" or "word": what the model's words are, where the choice above is wrong.
        word_score: added for each word.
        lexicon: the words that may be written: a `Lexicon`, what makes one, or the path of its
            file.
        unknown_score: with a lexicon or a model of words, added for each word outside of it; -inf
            forbids them. None: -inf with a lexicon, else 0.
        hotwords: phrases, each worth `hotword_weight`, or what a mapping says.
        hotword_weight: natural-log bonus of each occurrence of a hotword.
        word_boundary: what stands between words in `tokens`. None: U+2581 where a token begins
            with it, else the first of "|", a space and "<space>" among them; "": nothing does. The
            blank never does.
        timesteps: fill in `Hypothesis.timesteps`.
        confidence: fill in `Hypothesis.confidence`; needs `timesteps`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
        RuntimeError: fastctc was installed without its compiled library.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        blank: int = 0,
        beam_size: int = 100,
        nbest: int = 1,
        beam_threshold: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        blank_skip_threshold: float | None = None,
        lm: NGramModel | str | os.PathLike[str] | None = None,
        lm_weight: float = 0.5,
        lm_unit: str | None = None,
        word_score: float = 0.0,
        lexicon: Lexicon | Words | str | os.PathLike[str] | None = None,
        unknown_score: float | None = None,
        hotwords: Words | None = None,
        hotword_weight: float = 5.0,
        word_boundary: str | None = None,
        timesteps: bool = True,
        confidence: bool = True,
    ) -> None:
        self.tokens = check_tokens(tokens)
        classes = len(self.tokens)
        blank = whole_number_in("blank", blank, 0, classes - 1)
        beam_size = whole_number_in("beam_size", beam_size, 1, 2**16)
        nbest = whole_number_in("nbest", nbest, 1, beam_size)
        if top_k is not None:
            top_k = whole_number_in("top_k", top_k, 1, 2**31)
        looked_at = min(classes, top_k or classes)
        if (beam_size + 64) * looked_at >= 2**31:
            raise ValueError(
                f"beam_size is {beam_size} and {looked_at} classes are looked at (top_k limits "
                "them): their product must be below 2^31"
            )
        check_scores(lm_weight, lm_unit, word_score, unknown_score, hotword_weight)
        self.timesteps = flag("timesteps", timesteps)
        self.confidence = flag("confidence", confidence)
        if confidence and not timesteps:
            raise ValueError("confidence=True needs timesteps=True")
        self.blank = blank
        self.beam_size = beam_size
        self.nbest = nbest
        self.beam_threshold = _optional("beam_threshold", beam_threshold, math.inf)
        self.top_k = top_k
        self.top_p = _optional("top_p", top_p, 1)
        self.blank_skip_threshold = _optional("blank_skip_threshold", blank_skip_threshold, 1)
        self.word_boundary = find_boundary(self.tokens, blank, word_boundary)
        if isinstance(lm, (str, os.PathLike)):
            lm = NGramModel.from_arpa(lm)
        elif lm is not None and not isinstance(lm, NGramModel):
            raise TypeError(
                "lm must be an NGramModel, the path of an ARPA file or None, got "
                f"{type(lm).__name__}"
            )
        if isinstance(lexicon, (str, os.PathLike)):
            lexicon = Lexicon.from_file(lexicon)
        elif lexicon is not None and not isinstance(lexicon, Lexicon):
            lexicon = Lexicon(lexicon)
        fusion: Fusion | None = None
        if any(given is not None for given in (lm, lexicon, hotwords)) or word_score != 0:
            fusion = Fusion(
                self.tokens,
                blank=blank,
                lm=lm,
                lm_weight=lm_weight,
                lm_unit=lm_unit,
                word_score=word_score,
                lexicon=lexicon,
                unknown_score=unknown_score,
                hotwords=hotwords,
                hotword_weight=hotword_weight,
                word_boundary=self.word_boundary,
            )
        self.fusion = fusion
        self._spells_words = lexicon is not None and lexicon.spellings is not None
        self._prepare()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTINGS and name in self.__dict__:
            raise AttributeError(_fixed(name))
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in _SETTINGS:
            raise AttributeError(_fixed(name))
        super().__delattr__(name)

    def _prepare(self) -> None:
        """What is made from the settings and does not travel in a pickle."""
        native = _decode.native()
        self._fusion = self.fusion  # the options hold but its address
        self._options = {
            from_logits: native.BeamSearchOptions(
                C=len(self.tokens),
                blank=self.blank,
                beam_size=self.beam_size,
                from_logits=from_logits,
                beam_threshold=1e300 if self.beam_threshold is None else self.beam_threshold,
                top_k=self.top_k or 0,
                top_p=1.0 if self.top_p is None else self.top_p,
                blank_skip_threshold=(
                    1.0 if self.blank_skip_threshold is None else self.blank_skip_threshold
                ),
                timesteps=self.timesteps,
                confidence=self.confidence,
                fusion=0 if self.fusion is None else self.fusion.address,
                bonus_rows=0 if self.fusion is None else self.fusion.bonus_rows,
            )
            for from_logits in (False, True)
        }
        boundary = self.word_boundary
        self._spelling = [
            token.replace(boundary, " ") if boundary else token for token in self.tokens
        ]

    def __getstate__(self) -> dict[str, Any]:
        made = ("_fusion", "_options", "_spelling")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def decode_tensors(
        self, emissions: Tensor, lengths: Any = None, *, from_logits: bool = False
    ) -> DecodedBatch:
        """The `nbest` best labellings as padded tensors.

        Args:
            emissions: (N, T, C) natural-log probabilities, or logits with ``from_logits``; float16,
                bfloat16, float32 or float64. On a CUDA device the search runs there, on the current
                stream, with beams up to 256. All others run on the CPU, over as many threads as
                ``torch.get_num_threads()``; emissions from elsewhere are copied.
            lengths: (N,) frames of each utterance, a tensor or a list. None: all T.
            from_logits: apply a log-softmax over the classes first.

        Returns:
            Tensors on the device of the emissions. From a search on CUDA nothing is waited for:
            L is T, and an utterance whose length on the device is out of range has no labelling.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: a shape or a length is out of range; or language model, words and hotwords
                add more than 80 nats (700 for float64 emissions) to a score by one token.
        """
        out = self._search(emissions, lengths, from_logits, wait=False)
        return DecodedBatch(*(tensor.to(emissions.device) for tensor in out))

    def _search(
        self, emissions: Tensor, lengths: Any, from_logits: bool, wait: bool
    ) -> DecodedBatch:
        emissions = _decode.check_emissions(emissions, (3,), len(self.tokens))
        options = self._options[flag("from_logits", from_logits)]
        backend = _decode_cuda.backend_for(emissions, self.beam_size)
        if backend is not None:
            return _decode_cuda.beam_search(
                backend,
                options,
                self.fusion,
                emissions,
                _decode_cuda.check_lengths(backend, lengths, emissions),
                nbest=self.nbest,
                timesteps=self.timesteps,
                confidence=self.confidence,
                wait=wait,
            )
        lengths = _decode.check_lengths(lengths, emissions.size(0), emissions.size(1))
        emissions = _decode.with_adjacent_classes(emissions)
        return _decode.beam_search(options, emissions, lengths, self.nbest, self.blank)

    def __call__(
        self, emissions: Tensor, lengths: Any = None, *, from_logits: bool = False
    ) -> list[list[Hypothesis]]:
        """The `nbest` best hypotheses of each utterance, best first; arguments as above.

        A frame without a finite score, or with +inf, leaves an utterance without hypotheses. NaN
        counts as -inf; with ``from_logits`` there is no softmax of it, and so no hypothesis.
        """
        return self.hypotheses(self._search(emissions, lengths, from_logits, wait=True))

    def hypotheses(self, decoded: DecodedBatch) -> list[list[Hypothesis]]:
        """Texts for tensors that `decode_tensors` or `greedy_decode` has made.

        Raises:
            ValueError: a token is no class.
        """
        tokens, lengths, scores, lm_scores, starts, ends, confidence = (
            tensor.tolist() for tensor in decoded
        )
        batch = []
        for n, row in enumerate(lengths):
            found = []
            for k, length in enumerate(row):
                if scores[n][k] == -math.inf:
                    continue
                times = zip(starts[n][k][:length], ends[n][k][:length], strict=True)
                labels = tokens[n][k][:length]
                text, words = self._written(labels)
                found.append(
                    Hypothesis(
                        labels,
                        text,
                        words,
                        scores[n][k],
                        lm_scores[n][k],
                        list(times) if self.timesteps else [],
                        confidence[n][k][:length] if self.confidence else [],
                    )
                )
            batch.append(found)
        return batch

    def _written(self, labels: list[int]) -> tuple[str, list[str]]:
        """Text and words of some labels."""
        if self._spells_words and self.fusion is not None:
            words = [word.text for word in self.fusion.trace(labels).words]
            return " ".join(words), words
        check_classes(labels, len(self._spelling))
        text = "".join([self._spelling[c] for c in labels]).strip()
        return text, text.split()

    def greedy(
        self, emissions: Tensor, lengths: Any = None, *, from_logits: bool = False
    ) -> list[Hypothesis]:
        """The hypothesis of each utterance's best path: see `greedy_decode`.

        It is empty, with a score of -inf, where a frame has no finite score.
        """
        emissions = _decode.check_emissions(emissions, (3,), len(self.tokens))
        decoded = greedy_decode(emissions, lengths, blank=self.blank, from_logits=from_logits)
        decoded = _decode.as_wide_as_the_longest(decoded)
        nothing = Hypothesis([], "", [], -math.inf, 0.0, [], [])
        return [found[0] if found else nothing for found in self.hypotheses(decoded)]

    def stream(self, *, from_logits: bool = False) -> CTCStream:
        """A search that takes one utterance piece by piece."""
        return CTCStream(self, from_logits)


class CTCStream:
    """One utterance decoded as it arrives; see `CTCDecoder.stream`.

    However it is cut into pieces, the result is that of the whole. A stream keeps its emissions as
    long as its decoder is to find timesteps. It may be used from several threads, one at a time;
    a decoder has any number of streams.
    """

    def __init__(self, decoder: CTCDecoder, from_logits: bool) -> None:
        self._decoder = decoder
        self._from_logits = flag("from_logits", from_logits)
        self._lock = threading.Lock()
        self._dtype: torch.dtype | None = None
        self._search: Any = None
        self._kept: list[Tensor] = []
        self._failure = ""
        self.frames = 0

    def feed(self, emissions: Tensor) -> None:
        """Take the next frames.

        Args:
            emissions: (T, C), of one dtype throughout the stream; T may be 0.

        Raises:
            TypeError: the dtype is not served, or not that of the frames before.
            ValueError: the shape does not fit; or what `CTCDecoder.decode_tensors` says of bonuses,
                and then the stream is of no use until `reset`.
            RuntimeError: the stream is of no use.
        """
        decoder = self._decoder
        emissions = _decode.check_emissions(emissions, (2,), len(decoder.tokens))
        emissions = _decode.with_adjacent_classes(emissions)
        with self._lock:
            self._refuse_after_failure()
            if self._search is None:
                self._search = _decode.native().BeamSearch(
                    decoder._options[self._from_logits], DTYPE_CODES[emissions.dtype]
                )
                self._dtype = emissions.dtype
            elif emissions.dtype is not self._dtype:
                raise TypeError(
                    f"emissions must be {self._dtype} like the frames before, got {emissions.dtype}"
                )
            try:
                self._search.advance(emissions.data_ptr(), emissions.stride(0), emissions.size(0))
            except Exception as error:
                self._failure = str(error)
                raise
            if decoder.timesteps:
                self._kept.append(emissions.clone(memory_format=torch.contiguous_format))
            self.frames += emissions.size(0)

    def hypotheses(self) -> list[Hypothesis]:
        """The `nbest` best so far, as if the utterance ended here. The stream may go on."""
        return self._decoder.hypotheses(self.decode_tensors())[0]

    def decode_tensors(self) -> DecodedBatch:
        """The same as padded tensors, on the host: a batch of one utterance."""
        decoder = self._decoder
        with self._lock:
            self._refuse_after_failure()
            if self._search is None:
                nothing = torch.empty((1, 0, len(decoder.tokens)), device="cpu")
                return decoder.decode_tensors(nothing, from_logits=self._from_logits)
            if len(self._kept) > 1:
                self._kept = [torch.cat(self._kept)]
            address = self._kept[0].data_ptr() if self._kept else 0
            found = self._search.best(decoder.nbest, address, len(decoder.tokens), self.frames)
            return _decode.to_tensors(found, 1, decoder.nbest, decoder.blank)

    def reset(self) -> None:
        """Forget what was fed: the next frames begin another utterance, of any dtype."""
        with self._lock:
            self._dtype = self._search = None
            self._kept = []
            self._failure = ""
            self.frames = 0

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled or copied: feed its frames to a new one")

    def _refuse_after_failure(self) -> None:
        if self._failure:
            raise RuntimeError(f"the stream failed, and only reset() helps it: {self._failure}")


def _optional(name: str, value: Any, most: float) -> float | None:
    return None if value is None else number_in(name, value, 0, most)


def _fixed(name: str) -> str:
    return f"the {name} of a decoder cannot be changed: make a new CTCDecoder"
