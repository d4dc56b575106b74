"""Forward-backward over the CTC lattice in the log domain, one utterance after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

try:
    import numba
except ImportError as error:
    raise ImportError(
        "the reference implementation of fastctc needs numba: pip install fastctc[reference]"
    ) from error

F = TypeVar("F", bound=Callable[..., Any])

NEG_INF = -np.inf


def compiled(function: F) -> F:
    """Compile with numba, keeping the result on disk where numba finds a place for it."""
    kernel: Any
    try:
        kernel = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor a home folder can be written to
        kernel = numba.njit(nogil=True)(function)
    return cast(F, kernel)


@compiled
def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), where -inf stands for log(0)."""
    if a < b:
        a, b = b, a
    if b == NEG_INF:
        return a
    total: float = a + np.log1p(np.exp(b - a))
    return total


@compiled
def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Normalise each frame of (T, C) logits; a frame of nothing but -inf becomes NaN."""
    result = np.empty_like(scores)
    for t in range(scores.shape[0]):
        largest = scores[t].max()
        total = 0.0
        for c in range(scores.shape[1]):
            total += np.exp(scores[t, c] - largest)
        log_total = np.log(total)
        for c in range(scores.shape[1]):
            result[t, c] = (scores[t, c] - largest) - log_total
    return result


@compiled
def with_blanks(labels: np.ndarray, blank: int) -> np.ndarray:
    """The states of the lattice: a blank before, between and after the labels."""
    states = np.full(2 * labels.size + 1, blank, dtype=np.int64)
    states[1::2] = labels
    return states


@compiled
def can_skip(states: np.ndarray, s: int) -> bool:
    """Whether a path may enter label state `s` from the label before it, leaving out the blank."""
    return s % 2 == 1 and s >= 3 and states[s] != states[s - 2]


@compiled
def emissions(log_probs: np.ndarray, states: np.ndarray) -> np.ndarray:
    """(T, states) log-probabilities, -inf for a state too far from the beginning or the end.

    No path reads those, so that a NaN or +inf among them says nothing about the row.
    """
    frames = log_probs.shape[0]
    count = states.size
    result = np.full((frames, count), NEG_INF)
    for t in range(frames):
        # A path moves on by two states a frame at most.
        for s in range(max(0, count - 2 - 2 * (frames - 1 - t)), min(count, 2 * t + 2)):
            result[t, s] = log_probs[t, states[s]]
    return result


@compiled
def is_poisoned(emitted: np.ndarray) -> bool:
    """Whether any value is NaN or +inf, so that the row has no loss."""
    for t in range(emitted.shape[0]):
        for s in range(emitted.shape[1]):
            if not emitted[t, s] < np.inf:
                return True
    return False


@compiled
def forward(emitted: np.ndarray, states: np.ndarray) -> np.ndarray:
    """alpha[t, s]: log-probability of all path beginnings that are in state s at frame t."""
    frames = emitted.shape[0]
    alpha = np.full((frames, states.size), NEG_INF)
    alpha[0, :2] = emitted[0, :2]
    for t in range(1, frames):
        for s in range(states.size):
            total = alpha[t - 1, s]
            if s >= 1:
                total = log_add(total, alpha[t - 1, s - 1])
            if can_skip(states, s):
                total = log_add(total, alpha[t - 1, s - 2])
            alpha[t, s] = total + emitted[t, s]
    return alpha


@compiled
def backward_step(beta: np.ndarray, emitted: np.ndarray, states: np.ndarray) -> np.ndarray:
    """One frame back: `beta` belongs to the frame in which the states emit `emitted`."""
    result = np.empty_like(beta)
    count = states.size
    for s in range(count):
        total = beta[s] + emitted[s]
        if s + 1 < count:
            total = log_add(total, beta[s + 1] + emitted[s + 1])
        if s + 2 < count and can_skip(states, s + 2):
            total = log_add(total, beta[s + 2] + emitted[s + 2])
        result[s] = total
    return result


@compiled
def occupancy(
    emitted: np.ndarray,
    states: np.ndarray,
    alpha: np.ndarray,
    log_likelihood: float,
    classes: int,
) -> np.ndarray:
    """(T, C) probability that a path of the target emits class c at frame t."""
    frames = emitted.shape[0]
    posterior = np.zeros((frames, classes))
    # beta[s] leaves out the emission of its own frame, so that alpha + beta counts it once.
    beta = np.full(states.size, NEG_INF)
    beta[states.size - 1] = 0.0
    if states.size > 1:
        beta[states.size - 2] = 0.0
    for t in range(frames - 1, -1, -1):
        for s in range(states.size):
            posterior[t, states[s]] += np.exp(alpha[t, s] + beta[s] - log_likelihood)
        if t > 0:
            beta = backward_step(beta, emitted[t], states)
    return posterior


@compiled
def utterance(
    scores: np.ndarray,
    labels: np.ndarray,
    blank: int,
    from_logits: bool,
    true_grad: bool,
    want_grad: bool,
) -> tuple[float, np.ndarray]:
    """Loss and (T, C) gradient of one utterance whose (T, C) scores are all valid frames.

    Where no path can spell the labels the loss is inf and the gradient NaN. Both are NaN where a
    path would read a NaN or +inf.
    """
    frames, classes = scores.shape
    if frames == 0:
        return (0.0 if labels.size == 0 else np.inf), np.zeros((0, classes))
    log_probs = log_softmax(scores) if from_logits else scores
    states = with_blanks(labels, blank)
    emitted = emissions(log_probs, states)
    if is_poisoned(emitted):
        return np.nan, np.full((frames, classes), np.nan)
    alpha = forward(emitted, states)
    log_likelihood = alpha[frames - 1, states.size - 1]
    if states.size > 1:
        log_likelihood = log_add(log_likelihood, alpha[frames - 1, states.size - 2])
    if log_likelihood == NEG_INF:
        return np.inf, np.full((frames, classes), np.nan)
    if not want_grad:
        return -log_likelihood, np.zeros((0, classes))
    gradient = -occupancy(emitted, states, alpha, log_likelihood, classes)
    if from_logits or not true_grad:
        gradient += np.exp(log_probs)
    return -log_likelihood, gradient
