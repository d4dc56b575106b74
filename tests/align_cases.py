"""What tests of forced alignment hold results against."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from loss_cases import Case
from torch import Tensor

import fastctc
from fastctc import reference


def align(case: Case, **options: Any) -> tuple[Tensor, Tensor]:
    """Paths and scores of fastctc for time-major scores."""
    return fastctc.forced_align(
        *case.arguments(), **{"batch_first": False, "on_impossible": "mark"} | options
    )


def oracle(case: Case, from_logits: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Paths, scores and faults of the float64 reference."""
    paths, scores, faults = reference.forced_align(
        case.scores.double().numpy(),
        case.targets.numpy(),
        case.input_lengths.numpy(),
        case.target_lengths.numpy(),
        blank=case.blank,
        from_logits=from_logits,
    )
    return torch.from_numpy(paths), torch.from_numpy(scores), torch.from_numpy(faults)


def assert_same(case: Case, result: tuple[Tensor, Tensor], from_logits: bool = False) -> Tensor:
    """Paths are equal, scores but for rounding. Returns the oracle's faults."""
    paths, scores, faults = oracle(case, from_logits)
    assert torch.equal(result[0], paths)
    single = case.scores.dtype is not torch.float64
    if from_logits:
        tolerance = 2e-6 if single else 1e-13
        torch.testing.assert_close(
            result[1].double(), scores, rtol=tolerance, atol=tolerance, equal_nan=True
        )
    else:
        expected = scores.float() if single else scores
        torch.testing.assert_close(result[1], expected, rtol=0, atol=0, equal_nan=True)
    return faults


def all_paths(frames: int, target: list[int], blank: int) -> list[list[int]]:
    """Every way through the states of a target (blanks and labels in turn), frame by frame."""
    states = [blank, *itertools.chain.from_iterable((label, blank) for label in target)]
    ends = {len(states) - 1, max(0, len(states) - 2)}
    found = [[s] for s in range(min(2, len(states)))]
    for _ in range(frames - 1):
        longer = []
        for path in found:
            for step in range(3):
                s = path[-1] + step
                if s >= len(states):
                    continue
                if step == 2 and (s % 2 == 0 or states[s] == states[s - 2]):
                    continue
                longer.append([*path, s])
        found = longer
    return [path for path in found if path[-1] in ends]


def best_of_all(
    log_probs: np.ndarray, target: list[int], blank: int
) -> tuple[list[int], float] | None:
    """The best path and its score, out of all of them, by the documented rule for ties."""
    states = [blank, *itertools.chain.from_iterable((label, blank) for label in target)]
    paths = all_paths(len(log_probs), target, blank)
    scored = [
        (math.fsum(log_probs[t, states[s]] for t, s in enumerate(path)), path) for path in paths
    ]
    top = max((score for score, _ in scored), default=-math.inf)
    if top == -math.inf:
        return None

    def preference(path: list[int]) -> list[int]:
        """At the end the label, then, from the back, the smaller step."""
        return [path[-1], *(b - a for a, b in reversed(list(itertools.pairwise(path))))]

    best = min((path for score, path in scored if score == top), key=preference)
    return [states[s] for s in best], top
