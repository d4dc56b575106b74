"""What the figures should reach, in one place; the report marks each as met or missed.

The speed limits were set for float32 on an x86-64 core with AVX-512. Where the machine's best CPU
target is another one, only the limits that name their target apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """``limit`` is the least that counts as met (the most, where ``smaller_is_better``)."""

    limit: float
    stretch: float | None = None
    smaller_is_better: bool = False

    def met(self, value: float) -> bool:
        return self._reaches(value, self.limit)

    def stretched(self, value: float) -> bool:
        return self.stretch is not None and self._reaches(value, self.stretch)

    def _reaches(self, value: float, limit: float) -> bool:
        return value <= limit if self.smaller_is_better else value >= limit


# (scores, CPU target) -> workload -> times as fast as torch: forward and backward, one thread,
# float32, full lengths.
SPEED: dict[tuple[str, str], dict[str, Target]] = {
    ("logits", "avx512"): {
        "A": Target(30, 60),
        "B": Target(80, 200),
        "C": Target(12, 20),
        "D": Target(80, 200),
        "E": Target(10, 25),
        "F": Target(12),
        "G": Target(30),
    },
    ("log_probs", "avx512"): {
        "A": Target(18),
        "B": Target(50),
        "C": Target(2),
        "D": Target(60),
        "E": Target(5),
    },
    ("logits", "avx2"): {
        "A": Target(10),
        "B": Target(15),
        "C": Target(6),
        "D": Target(10),
        "E": Target(4),
    },
}

# Workload -> times as fast on two threads as on one: logits, forward and backward.
SCALING = {"B": Target(1.7), "D": Target(1.7)}

# Mode -> microseconds of a call on one utterance of five frames, from logits.
FIXED_COST = {
    "forward": Target(10, smaller_is_better=True),
    "train": Target(25, smaller_is_better=True),
}

# Workload -> peak memory over the gradient's size. Below 2 there is no second tensor of the
# gradient's size; the rest is workspace that grows with the labels, not with the alphabet, and
# only shows where the alphabet is large.
MEMORY = {
    "C": Target(1.5, smaller_is_better=True),
    "F": Target(1.5, smaller_is_better=True),
}

# Largest relative error of a loss and largest absolute error of a gradient entry, float32
# against float64. "combined" is a case that joins all the difficulties of the others.
ACCURACY = Target(1e-5, smaller_is_better=True)
ACCURACY_COMBINED = Target(5e-5, smaller_is_better=True)

# Peer -> times as fast, forward and backward of a batch on one thread; "sequence" is
# SequenceBatchNorm, the others are the functions.
NORM = {"eager": Target(6), "compiled": Target(1.3)}
NORM_SEQUENCE = {"eager": Target(8), "gather": Target(1.5)}
# Largest error of a float32 result against float64, in deviations or as a share of the result.
NORM_ACCURACY = Target(4e-6, smaller_is_better=True)


def _norm_target(row: Mapping[str, Any]) -> Target | None:
    if row["threads"] != 1 or row["cpu_target_used"] != "avx512":
        return None
    return (NORM_SEQUENCE if row["workload"].startswith("sequence") else NORM).get(row["peer"])


def _speed_target(row: Mapping[str, Any]) -> Target | None:
    if (row["mode"], row["threads"]) != ("train", 1) or row["peer"] != "torch":
        return None
    if (row["lengths"], row["dtype"]) != ("full", "float32"):
        return None
    return SPEED.get((row["scores"], row["cpu_target_used"]), {}).get(row["workload"])


def target_of(row: Mapping[str, Any]) -> Target | None:
    """The target of a benchmark row (its ``extra_info``), or None where it has none."""
    match row["kind"]:
        case "speed":
            return _speed_target(row)
        case "scaling":
            return SCALING.get(row["workload"])
        case "fixed_cost":
            return FIXED_COST.get(row["mode"]) if row["scores"] == "logits" else None
        case "memory":
            return MEMORY.get(row["workload"])
        case "accuracy":
            return ACCURACY_COMBINED if row["case"] == "combined" else ACCURACY
        case "norm":
            return _norm_target(row)
        case "norm_accuracy":
            return NORM_ACCURACY
        case "beam":  # stands beside the row's other options
            if row["target"] is None:
                return None
            return Target(row["target"], smaller_is_better=row["is_cost"])
        case "norm_memory" | "align":
            return None
    raise ValueError(f"unknown kind of row: {row['kind']!r}")


def values_of(row: Mapping[str, Any]) -> tuple[float, ...]:
    """The figures of a row that its target is about; all of them have to reach it."""
    match row["kind"]:
        case "speed" | "scaling" | "norm" | "beam" | "align":
            return (row["ratio"],)
        case "fixed_cost":
            return (row["ours_s"] * 1e6,)
        case "memory":
            return (row["ours_bytes"] / row["gradient_bytes"],)
        case "accuracy":
            return _errors(row["ours_loss_error"], row["ours_gradient_error"])
        case "norm_accuracy":
            return _errors(row["ours_error"])
    raise ValueError(f"unknown kind of row: {row['kind']!r}")


def _errors(*found: float | None) -> tuple[float, ...]:
    """Errors as numbers; None is what JSON has for NaN."""
    return tuple(math.nan if error is None else error for error in found)


def verdict(row: Mapping[str, Any]) -> str | None:
    """ "stretch", "met" or "missed"; None where the row has no target or was a trial run."""
    target = None if row["quick"] else target_of(row)
    if target is None:
        return None
    values = values_of(row)
    if not all(target.met(value) for value in values):
        return "missed"
    return "stretch" if all(target.stretched(value) for value in values) else "met"
