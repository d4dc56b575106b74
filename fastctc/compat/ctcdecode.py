"""What ctcdecode offers, served by fastctc.

A program that has ``from ctcdecode import CTCBeamDecoder`` can have
``from fastctc.compat.ctcdecode import CTCBeamDecoder``. docs/migration.md says what differs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastctc import _decode
from fastctc._arguments import number_in, whole_number_in
from fastctc._decode import DecodedBatch
from fastctc._fusion import WRITTEN_BLANKS, check_weight
from fastctc._spelling import Spelling, check_tokens
from fastctc.decoder import CTCDecoder
from fastctc.lexicon import Lexicon
from fastctc.lm import SPECIAL_WORDS, NGramModel

__all__ = ["CTCBeamDecoder", "DecoderState", "OnlineCTCBeamDecoder"]

Results = tuple[Tensor, Tensor, Tensor, Tensor]

_SPACE = " "
# What a probability of 0 counts as, so that its logarithm is finite.
_LEAST = torch.finfo(torch.float32).tiny


class _Decoder:
    """What batch and online decoding share: the settings and the search made from them."""

    def __init__(
        self,
        labels: Sequence[str],
        model_path: str | os.PathLike[str] | None = None,
        alpha: float = 0,
        beta: float = 0,
        cutoff_top_n: int = 40,
        cutoff_prob: float = 1.0,
        beam_width: int = 100,
        num_processes: int = 4,
        blank_id: int = 0,
        log_probs_input: bool = False,
        is_token_based: bool = False,
    ) -> None:
        self._labels = check_tokens(labels, "labels")
        self._cutoff_top_n = whole_number_in("cutoff_top_n", cutoff_top_n, 1, 2**31)
        self._cutoff_prob = number_in("cutoff_prob", cutoff_prob, 0, 1)
        self._beam_width = whole_number_in("beam_width", beam_width, 1, 2**16)
        self._blank_id = whole_number_in("blank_id", blank_id, 0, len(self._labels) - 1)
        self._log_probs = bool(log_probs_input)
        self._model = NGramModel.from_arpa(model_path) if model_path else None
        words = [w for w in self._model.words if w not in SPECIAL_WORDS] if self._model else []
        self._by_label = bool(is_token_based) or all(len(word) == 1 for word in words)
        self._words: list[str] = []
        if not self._by_label:
            _, _, spelled = Spelling(self._labels, blank_id, _SPACE, None).letters_of(words)
            self._words = [words[number] for number in spelled]
        self._search = self._make_search(alpha, beta)

    def _make_search(self, alpha: float, beta: float) -> CTCDecoder:
        alpha, beta = check_weight("alpha", alpha), check_weight("beta", beta)
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}: it must be at least 0")
        options: dict[str, Any] = {}
        tokens = self._labels
        if self._model is None:
            options["word_boundary"] = ""
        elif self._by_label:
            tokens = [_as_word(label, self._model) for label in self._labels]
            options |= {"lm": self._model, "lm_weight": alpha, "lm_unit": "token"}
            options |= {"word_boundary": "", "hotwords": self._bonuses(beta)}
        else:
            if not self._words:
                raise ValueError("no word of the n-gram model can be spelled with the labels")
            options |= {"lm": self._model, "lm_weight": alpha, "lm_unit": "word"}
            options |= {"lexicon": Lexicon(self._words), "word_score": beta}
            options["word_boundary"] = _SPACE if _SPACE in tokens else None
        return CTCDecoder(
            tokens,
            blank=self._blank_id,
            beam_size=self._beam_width,
            nbest=self._beam_width,
            top_k=self._cutoff_top_n,
            top_p=self._cutoff_prob,
            confidence=False,
            **options,
        )

    def _bonuses(self, beta: float) -> dict[str, float] | None:
        """beta for each label but the space: a hotword of one token is found wherever it is."""
        if beta == 0:
            return None
        labels = [label for c, label in enumerate(self._labels) if c != self._blank_id]
        bonuses = {label: beta for label in labels if label != _SPACE}
        if long := [label for label in bonuses if len(label) != 1]:
            raise ValueError(
                f"beta is {beta}: with an n-gram model of labels it is added for each label, which "
                f"needs labels of one character; one is {long[0]!r}"
            )
        return bonuses

    def character_based(self) -> bool | None:
        """Whether the n-gram model's words are labels; None without a model."""
        return self._by_label if self._model is not None else None

    def max_order(self) -> int | None:
        """Length of the model's longest n-grams; None without a model."""
        return self._model.order if self._model is not None else None

    def dict_size(self) -> int | None:
        """Words that may be written, 0 with a model of labels; None without a model."""
        return len(self._words) if self._model is not None else None

    def _log(self, probs: Tensor) -> Tensor:
        if not isinstance(probs, Tensor):
            raise TypeError(f"probs must be a Tensor, got {type(probs).__name__}")
        probs = probs.detach().float()
        return probs if self._log_probs else (probs + _LEAST).log()


class CTCBeamDecoder(_Decoder):
    """Batches to integers: the arguments and results of ctcdecode's class.

    Args:
        labels: what each class stands for.
        model_path: ARPA file of an n-gram model, plain or gzip. A model whose words are single
            characters scores labels; another one scores words, which a label of one space
            separates, and only its words are written.
        alpha: weight of the model's natural logs.
        beta: added for each word, or for each label with a model of labels.
        cutoff_top_n: only so many best labels of a frame make new beams.
        cutoff_prob: only the best labels that reach this probability together make new beams.
        beam_width: beams kept, and returned.
        num_processes: nothing; ``torch.set_num_threads`` says how many threads decode.
        blank_id: index of the blank.
        log_probs_input: `probs` are natural logs.
        is_token_based: the model's words are labels, whatever they look like.

    Raises:
        ValueError: an argument is out of range, or the file is no ARPA file.
        OSError: the file cannot be read.
    """

    def reset_params(self, alpha: float, beta: float) -> None:
        """Give the model another weight, and words or labels another bonus."""
        if self._model is not None:
            self._search = self._make_search(alpha, beta)

    def decode(self, probs: Tensor, seq_lens: Any = None) -> Results:
        """Decode a batch.

        Args:
            probs: (N, T, C) probabilities, or natural logs with `log_probs_input`, of any float
                type, on any device.
            seq_lens: (N,) frames of each utterance; more than T count as T. None: T.

        Returns:
            beam_results: (N, beam_width, T) int32 labels, best beam first; 0 past each length.
            beam_scores: (N, beam_width) float32, minus the natural log of the probability that the
                network gives to the beam; what the model and beta add orders the beams and is not
                in it. inf where there are fewer beams.
            timesteps: (N, beam_width, T) int32, the frame where each label is most probable among
                those that the best path spends on it; 0 past each length.
            out_lens: (N, beam_width) int32. All on the CPU.
        """
        log_probs = self._log(probs)
        frames = log_probs.size(1) if log_probs.dim() == 3 else 0
        decoded = self._search.decode_tensors(log_probs, _at_most(frames, seq_lens))
        return _results(decoded, log_probs, frames)


class OnlineCTCBeamDecoder(_Decoder):
    """Utterances to integers as they arrive, with a `DecoderState` for each.

    Arguments as for `CTCBeamDecoder`.
    """

    def decode(
        self,
        probs: Tensor,
        states: Sequence[DecoderState],
        is_eos_s: Sequence[bool],
        seq_lens: Any = None,
    ) -> Results:
        """Take the next frames of some utterances.

        Args:
            probs: (N, T, C), as for `CTCBeamDecoder.decode`.
            states: N states, one for each utterance.
            is_eos_s: N truth values: whether these are the utterance's last frames.
            seq_lens: (N,) frames of each utterance in `probs`; more than T count as T. None: T.

        Returns:
            As `CTCBeamDecoder.decode`, as wide as the longest labelling. Utterances that go on
            have lengths and labels of 0 and scores of inf.
        """
        log_probs = self._log(probs)
        emissions = _decode.check_emissions(log_probs, (3,), len(self._labels))
        batch, frames, _ = emissions.shape
        states = _one_for_each("states", states, batch)
        is_eos_s = _one_for_each("is_eos_s", is_eos_s, batch)
        for n, state in enumerate(states):
            _check_state(f"states[{n}]", state)
            if any(state is other for other in states[:n]):
                raise ValueError(f"states[{n}] is there twice: each utterance needs its own")
            state._check_fits(self, f"states[{n}]")
        lengths = _decode.check_lengths(_at_most(frames, seq_lens), batch, frames).tolist()
        found: list[Results | None] = []
        for state, row, length, ends in zip(states, emissions, lengths, is_eos_s, strict=True):
            state._feed(row[:length])
            found.append(state._end() if ends else None)
        width = max((results[0].size(2) for results in found if results is not None), default=0)
        ended = any(results is not None for results in found)
        shape = (batch, self._beam_width if ended else 0, width)
        labels, times = (torch.zeros(shape, dtype=torch.int32, device="cpu") for _ in range(2))
        scores = torch.full((batch, self._beam_width), torch.inf, device="cpu")
        out_lens = torch.zeros((batch, self._beam_width), dtype=torch.int32, device="cpu")
        for n, results in enumerate(found):
            if results is None:
                continue
            end = results[0].size(2)
            labels[n, :, :end], times[n, :, :end] = results[0][0], results[2][0]
            scores[n], out_lens[n] = results[1][0], results[3][0]
        return labels, scores, times, out_lens

    @staticmethod
    def reset_state(state: DecoderState) -> None:
        """Let a state begin another utterance."""
        _check_state("state", state)
        state._stream.reset()
        state._frames = []


class DecoderState:
    """One utterance on its way through a decoder. At its end it begins another one."""

    def __init__(self, decoder: OnlineCTCBeamDecoder) -> None:
        if not isinstance(decoder, OnlineCTCBeamDecoder):
            raise TypeError(
                f"decoder must be an OnlineCTCBeamDecoder, got {type(decoder).__name__}"
            )
        self._decoder = decoder
        self._stream = decoder._search.stream()
        self._frames: list[Tensor] = []

    def _check_fits(self, decoder: OnlineCTCBeamDecoder, name: str) -> None:
        own = self._decoder
        if (own._labels, own._beam_width) != (decoder._labels, decoder._beam_width):
            raise ValueError(
                f"{name} was made for another decoder: {len(own._labels)} labels and a beam_width "
                f"of {own._beam_width}, not these {len(decoder._labels)} and {decoder._beam_width}"
            )

    def _feed(self, log_probs: Tensor) -> None:
        self._stream.feed(log_probs)
        self._frames.append(log_probs.clone())

    def _end(self) -> Results:
        decoded = self._stream.decode_tensors()
        results = _results(decoded, torch.cat(self._frames)[None], decoded.tokens.size(2))
        OnlineCTCBeamDecoder.reset_state(self)
        return results


def _one_for_each(name: str, given: Any, batch: int) -> list[Any]:
    """What there is one of for each utterance, as a list."""
    if not isinstance(given, Iterable):
        raise TypeError(
            f"{name} must be a sequence, one for each utterance, got {type(given).__name__}"
        )
    listed = list(given)
    if len(listed) != batch:
        raise ValueError(f"{name} must be {batch}, one for each utterance, not {len(listed)}")
    return listed


def _check_state(name: str, state: Any) -> None:
    if not isinstance(state, DecoderState):
        raise TypeError(f"{name} must be a DecoderState, got {type(state).__name__}")


def _at_most(frames: int, seq_lens: Any) -> Tensor | None:
    """Lengths, those beyond the frames cut."""
    if seq_lens is None:
        return None
    try:
        seq_lens = (
            seq_lens if isinstance(seq_lens, Tensor) else torch.tensor(seq_lens, device="cpu")
        )
        return seq_lens.clamp(max=frames)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"seq_lens must be integers of 64 bits, got {seq_lens!r:.60}") from None


def _as_word(label: str, model: NGramModel) -> str:
    """A label as a model of labels writes it, where no file can hold a space."""
    if label != _SPACE:
        return label
    return next((w for w in WRITTEN_BLANKS if w in model), WRITTEN_BLANKS[0])


def _results(decoded: DecodedBatch, log_probs: Tensor, width: int) -> Results:
    """The tuple that ctcdecode returns, `width` labels wide."""
    peaks = _peaks(decoded, log_probs)
    batch, beams, longest = decoded.tokens.shape
    past = torch.arange(longest, device=peaks.device) >= decoded.lengths[..., None]
    labels = torch.zeros((batch, beams, width), dtype=torch.int32, device="cpu")
    times = torch.zeros_like(labels)
    labels[..., :longest] = decoded.tokens.masked_fill(past, 0)
    times[..., :longest] = peaks
    scores = (decoded.lm_scores - decoded.scores).float().cpu()
    return labels, scores, times, decoded.lengths.int().cpu()


def _peaks(decoded: DecodedBatch, log_probs: Tensor) -> Tensor:
    """For each label the frame, of those spent on it, where its class is most probable.

    Returns (N, beams, L) int64: the first of equal frames, 0 past each length.
    """
    starts = decoded.starts.flatten()
    spans = decoded.ends.flatten() - starts
    classes = decoded.tokens.flatten()
    label = torch.repeat_interleave(torch.arange(len(spans), device=spans.device), spans)
    first = spans.cumsum(0) - spans
    frame = torch.arange(len(label), device=spans.device) - first[label] + starts[label]
    utterance = label // max(1, decoded.tokens[0].numel() if len(decoded.tokens) else 1)
    values = log_probs.to(spans.device)[utterance, frame, classes[label]]
    best = torch.full((len(spans),), -torch.inf, device=spans.device)
    best.scatter_reduce_(0, label, values, "amax")
    peak = torch.full_like(spans, log_probs.size(1))
    at_peak = values == best[label]
    peak.scatter_reduce_(0, label[at_peak], frame[at_peak], "amin")
    return peak.masked_fill(spans == 0, 0).view_as(decoded.starts)
