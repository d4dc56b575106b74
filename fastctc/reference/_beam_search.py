"""Prefix beam search in double precision as the textbooks have it, and the answer by enumeration.

Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
Recurrent DNNs", with dictionaries for the beam. What the compiled search does fast is defined here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Prefix = tuple[int, ...]
NEVER = -math.inf


class Fusion(Protocol):
    """What rewards or forbids prefixes: a language model, a lexicon, hotwords."""

    def start(self) -> Any:
        """State of the empty prefix."""

    def extend(self, state: Any, token: int) -> tuple[float, Any] | None:
        """Natural-log bonus of one more token and the new state; None forbids it."""

    def finish(self, state: Any) -> float:
        """Natural-log bonus of ending here."""


class ScoredPrefix(NamedTuple):
    """One hypothesis: its labels, its natural-log score, and the fusion's part of that score."""

    tokens: Prefix
    score: float
    lm_score: float


class Entry(NamedTuple):
    """A prefix in the beam: log mass of its paths that end in blank, and in its last token.

    Both include `bonus`, the fusion's bonuses up to here.
    """

    blank: float
    token: float
    bonus: float
    state: Any

    @property
    def total(self) -> float:
        return add(self.blank, self.token)


def add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    return float(np.logaddexp(a, b)) if max(a, b) > NEVER else NEVER


def rank(item: tuple[Prefix, float]) -> tuple[float, int, Prefix]:
    """Sort key of (prefix, score): the best first; of equal scores the shorter prefix, then the
    one whose tokens come first in lexicographic order."""
    prefix, score = item
    return -score, len(prefix), prefix


def permitted_tokens(
    frame: NDArray[np.float64], blank: int, top_k: int | None, top_p: float | None
) -> list[int]:
    """The classes that may extend a prefix: among the best `top_k`, blank counted, and among the
    best that together reach the probability `top_p`. Of equal ones the lower class comes first."""
    order = np.argsort(-frame, kind="stable")
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None:
        reached = np.cumsum(np.exp(frame[order]))
        order = order[: int(np.searchsorted(reached, top_p)) + 1]
    return [int(c) for c in order if c != blank and frame[c] > NEVER]


def prefix_beam_search(
    log_probs: ArrayLike,
    beam_size: int,
    *,
    blank: int = 0,
    beam_threshold: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    blank_skip_threshold: float | None = None,
    fusion: Fusion | None = None,
) -> list[ScoredPrefix]:
    """All prefixes that the beam holds after the last frame, best first.

    Pruning bears on new prefixes only: blank, the repetition of a prefix's last token, and what
    flows from a prefix into one that is in the beam already are always considered.

    Args:
        log_probs: (T, C) natural-log probabilities of one utterance.
        beam_size: prefixes kept after each frame.
        blank: index of the blank class.
        beam_threshold: prefixes more than this many nats below the best of the frame are dropped.
        top_k: only this many best classes of a frame, blank counted, make new prefixes.
        top_p: only the best classes that together reach this probability make new prefixes.
        blank_skip_threshold: a frame whose blank is more probable than this counts as blank.
        fusion: adds to the score of every extension; None adds nothing.
    """
    scores = np.asarray(log_probs, dtype=np.float64)
    beam: dict[Prefix, Entry] = {
        (): Entry(0.0, NEVER, 0.0, None if fusion is None else fusion.start())
    }
    for frame in scores:
        if blank_skip_threshold is not None and math.exp(frame[blank]) > blank_skip_threshold:
            beam = {
                prefix: entry._replace(blank=entry.total + frame[blank], token=NEVER)
                for prefix, entry in beam.items()
            }
            continue
        candidates = stayed(beam, frame, blank)
        permitted = permitted_tokens(frame, blank, top_k, top_p)
        candidates |= extended(beam, frame, permitted, fusion)
        ranked = sorted(((p, e.total) for p, e in candidates.items() if e.total > NEVER), key=rank)
        if beam_threshold is not None and ranked:
            least = ranked[0][1] - beam_threshold
            ranked = [item for item in ranked if item[1] >= least]
        beam = {prefix: candidates[prefix] for prefix, _ in ranked[:beam_size]}
    final = {}
    for prefix, entry in beam.items():
        ending = 0.0 if fusion is None else fusion.finish(entry.state)
        final[prefix] = ScoredPrefix(prefix, entry.total + ending, entry.bonus + ending)
    ranked = sorted(((p, s.score) for p, s in final.items() if s.score > NEVER), key=rank)
    return [final[prefix] for prefix, _ in ranked]


def mass_before(parent: Entry, last: int | None, token: int) -> float:
    """Log mass that may go on to `token`: after the same token only with a blank between them."""
    return parent.blank if token == last else parent.total


def stayed(
    beam: dict[Prefix, Entry], frame: NDArray[np.float64], blank: int
) -> dict[Prefix, Entry]:
    """The beam's prefixes after one more frame, fed by their own paths and by their parents'."""
    result = {}
    for prefix, entry in beam.items():
        token = NEVER
        if prefix:
            token = entry.token
            parent = beam.get(prefix[:-1])
            if parent is not None:
                last = prefix[-2] if len(prefix) > 1 else None
                # the bonus of the extension is what the child has more than its parent
                step = entry.bonus - parent.bonus
                token = add(token, mass_before(parent, last, prefix[-1]) + step)
            token += frame[prefix[-1]]
        result[prefix] = entry._replace(blank=entry.total + frame[blank], token=token)
    return result


def extended(
    beam: dict[Prefix, Entry],
    frame: NDArray[np.float64],
    permitted: Iterable[int],
    fusion: Fusion | None,
) -> dict[Prefix, Entry]:
    """The prefixes that one more token makes and the beam does not hold yet."""
    result = {}
    for (prefix, entry), token in itertools.product(beam.items(), list(permitted)):
        longer = (*prefix, token)
        if longer in beam:
            continue
        step = (0.0, None) if fusion is None else fusion.extend(entry.state, token)
        if step is None:
            continue
        bonus, state = step
        mass = mass_before(entry, prefix[-1] if prefix else None, token) + bonus + frame[token]
        result[longer] = Entry(NEVER, mass, entry.bonus + bonus, state)
    return result


def collapse(path: Iterable[int], blank: int) -> Prefix:
    """The labels that a path spells: repeats merged, blanks left out."""
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def enumerate_paths(
    log_probs: ArrayLike, *, blank: int = 0, combine: Callable[[float, float], float] = add
) -> dict[Prefix, float]:
    """Log score of every label sequence by going through all C^T paths.

    Args:
        log_probs: (T, C), tiny.
        blank: index of the blank class.
        combine: how paths with the same labels add up; `max` gives the best alignment's score.
    """
    scores = np.asarray(log_probs, dtype=np.float64)
    frames, classes = scores.shape
    result: dict[Prefix, float] = {}
    for path in itertools.product(range(classes), repeat=frames):
        score = float(sum(scores[t, c] for t, c in enumerate(path)))
        labels = collapse(path, blank)
        result[labels] = combine(result.get(labels, NEVER), score)
    return result
