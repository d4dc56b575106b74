"""Texts of scores and error rates, and what shows whether training is stuck at all-blank output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastctc.decoder import CTCDecoder
from fastctc.train import text as alphabet


def greedy_decode(scores: Tensor, lengths: Tensor) -> list[str]:
    """Return the best path of each utterance, repeats merged and blanks left out.

    Args:
        scores: (T, N, C), logits or log-probabilities.
        lengths: (N,) valid frames.
    """
    best = scores.detach().argmax(-1).cpu()
    time = torch.arange(len(best))[:, None]
    changed = torch.ones_like(best, dtype=torch.bool)
    changed[1:] = best[1:] != best[:-1]
    keep = changed & (best != alphabet.BLANK) & (time < lengths.cpu())
    # One transfer to Python objects for the batch, then a split per utterance.
    classes = best.T[keep.T].tolist()
    out, start = [], 0
    for count in keep.sum(0).tolist():
        out.append(alphabet.decode(classes[start : start + count]))
        start += count
    return out


def beam_decode(decoder: CTCDecoder, scores: Tensor, lengths: Tensor) -> list[str]:
    """Return the best text of each utterance that a decoder finds; arguments as above, logits."""
    found = decoder(scores.detach().transpose(0, 1), lengths, from_logits=True)
    return [hypotheses[0].text if hypotheses else "" for hypotheses in found]


@dataclasses.dataclass
class ErrorCount:
    """Edits summed over utterances. Insertions are units of the output that the text lacks."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def edits(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Summed edits / summed target length; without any target NaN."""
        return self.edits / self.length if self.length else float("nan")

    def add(self, counted: _Counted) -> None:
        """Add what jiwer counted."""
        self.substitutions += counted.substitutions
        self.deletions += counted.deletions
        self.insertions += counted.insertions
        self.length += counted.hits + counted.substitutions + counted.deletions


class _Counted(Protocol):
    """The counts that jiwer's outputs for characters and for words share."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int


class ErrorRates:
    """Character and word errors of a set."""

    def __init__(self) -> None:
        self.characters = ErrorCount()
        self.words = ErrorCount()

    def add(self, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """Count a batch. A space too many or too few is a character error like any other."""
        import jiwer

        pair = list(references), list(hypotheses)
        # jiwer's own transform would strip spaces at the ends first.
        letters = jiwer.ReduceToListOfListOfChars()
        self.characters.add(
            jiwer.process_characters(
                *pair, reference_transform=letters, hypothesis_transform=letters
            )
        )
        self.words.add(jiwer.process_words(*pair))

    @property
    def cer(self) -> float:
        """Character error rate, as a fraction."""
        return self.characters.rate

    @property
    def wer(self) -> float:
        """Word error rate, as a fraction."""
        return self.words.rate


@dataclasses.dataclass(frozen=True)
class BlankStatistics:
    """How much of the output is blank, over the valid frames of a batch.

    Attributes:
        fraction: Share of frames whose best class is blank.
        posterior: Mean probability of blank.
        frames_per_label: Frames over labels; near or below 1 leaves CTC no room.
    """

    fraction: float
    posterior: float
    frames_per_label: float


def blank_statistics(scores: Tensor, lengths: Tensor, labels: int) -> BlankStatistics:
    """Measure a batch.

    Args:
        scores: (T, N, C) logits or log-probabilities.
        lengths: (N,) valid frames.
        labels: Target labels of the whole batch.
    """
    scores = scores.detach()
    valid = torch.arange(len(scores), device=scores.device)[:, None] < lengths.to(scores.device)
    frames = scores[valid].float()
    blank = frames[:, alphabet.BLANK]
    fraction = (frames.argmax(-1) == alphabet.BLANK).float().mean()
    posterior = (blank - frames.logsumexp(-1)).exp().mean()
    values = torch.stack([fraction, posterior]).tolist()
    return BlankStatistics(values[0], values[1], len(frames) / max(labels, 1))


class StuckWatch:
    """Notices the all-blank plateau and says, once, what usually helps.

    Args:
        patience: Steps in a row with hardly anything but blanks before it speaks.
        threshold: Blank fraction from which a step counts.
    """

    def __init__(self, patience: int = 200, threshold: float = 0.98) -> None:
        if patience < 1:
            raise ValueError(f"patience is {patience}: at least 1 step is needed")
        self.patience = patience
        self.threshold = threshold
        self.steps = 0
        self.told = False

    def update(self, statistics: BlankStatistics) -> str | None:
        """Take one step's figures; return the advice when it is due, else None."""
        self.steps = self.steps + 1 if statistics.fraction >= self.threshold else 0
        if self.told or self.steps < self.patience:
            return None
        self.told = True
        message = (
            f"The network has answered blank on at least {self.threshold:.0%} of the frames for "
            f"{self.steps} steps: the all-blank plateau. Models often leave it by themselves; what "
            "usually helps: batch norm before every layer, a learning rate that starts low and "
            "warms up, short utterances first (data.sortagrad), gradient clipping, and labels that "
            "truly belong to the audio."
        )
        if statistics.frames_per_label < 2:
            message += (
                f" There are only {statistics.frames_per_label:.1f} output frames per label here; "
                "below 2, use a smaller time stride or hop."
            )
        return message
