"""The best CTC path of a target, one utterance after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastctc.reference._lattice import (
    NEG_INF,
    can_skip,
    compiled,
    emissions,
    is_poisoned,
    log_softmax,
    with_blanks,
)

NONE, IMPOSSIBLE, NOT_A_NUMBER = 0, 1, 2


@compiled
def utterance(
    scores: np.ndarray, labels: np.ndarray, blank: int, from_logits: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Path, its scores and the fault of one utterance whose (T, C) scores are all valid frames.

    Of two equally good predecessors the nearer one is taken; at the end, the label.
    """
    frames = scores.shape[0]
    path = np.full(frames, -1)
    if frames == 0:
        return path, np.zeros(0), (NONE if labels.size == 0 else IMPOSSIBLE)
    log_probs = log_softmax(scores) if from_logits else scores
    states = with_blanks(labels, blank)
    repeats = 0
    for i in range(1, labels.size):
        repeats += labels[i] == labels[i - 1]
    if frames < labels.size + repeats:
        return path, np.full(frames, NEG_INF), IMPOSSIBLE
    if from_logits and np.isnan(log_probs).any():
        return path, np.full(frames, np.nan), NOT_A_NUMBER
    # Raw scores decide, so that a log-softmax's rounding does not.
    emitted = emissions(scores, states)
    if is_poisoned(emitted):
        return path, np.full(frames, np.nan), NOT_A_NUMBER

    best = np.full(states.size, NEG_INF)
    best[:2] = emitted[0, :2]
    steps = np.zeros((frames, states.size), dtype=np.int8)
    for t in range(1, frames):
        reached = np.empty_like(best)
        for s in range(states.size):
            top = best[s]
            if s >= 1 and best[s - 1] > top:
                top = best[s - 1]
                steps[t, s] = 1
            if can_skip(states, s) and best[s - 2] > top:
                top = best[s - 2]
                steps[t, s] = 2
            reached[s] = top + emitted[t, s]
        best = reached
    state = states.size - 1
    if state > 0 and best[state - 1] >= best[state]:
        state -= 1
    if best[state] == NEG_INF:
        return path, np.full(frames, NEG_INF), IMPOSSIBLE
    chosen = np.zeros(frames)
    for t in range(frames - 1, -1, -1):
        path[t] = states[state]
        chosen[t] = log_probs[t, states[state]]
        state -= steps[t, state]
    return path, chosen, NONE


def batch(
    scores: NDArray[np.float64],
    rows: list[NDArray[np.int64]],
    input_lengths: NDArray[np.int64],
    blank: int,
    from_logits: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Paths and scores, (N, T), and faults, (N,), of (T, N, C) scores and each row's labels."""
    frames = scores.shape[0]
    paths = np.full((len(rows), frames), blank, dtype=np.int64)
    path_scores = np.zeros((len(rows), frames))
    faults = np.zeros(len(rows), dtype=np.int32)
    filler = {IMPOSSIBLE: NEG_INF, NOT_A_NUMBER: np.nan}
    for n, (labels, length) in enumerate(zip(rows, input_lengths.tolist(), strict=True)):
        path, chosen, fault = utterance(
            np.ascontiguousarray(scores[:length, n]),
            np.ascontiguousarray(labels),
            blank,
            from_logits,
        )
        faults[n] = fault
        if fault:
            paths[n], path_scores[n] = -1, filler[fault]
        else:
            paths[n, :length], path_scores[n, :length] = path, chosen
    return paths, path_scores, faults
