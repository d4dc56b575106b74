"""The CTC loss on the CPU: speed, fixed cost, thread scaling, peak memory and accuracy.

Run by ``python -m benchmarks``. Nothing here asserts a figure: what is measured goes into
``extra_info`` of pytest-benchmark's JSON, and the report holds it against its targets.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from benchmarks import accuracy, memory
from benchmarks.interleave import (
    MOST_ROUNDS,
    MOST_ROUNDS_OF_THREADS,
    PAUSE,
    QUICK_ROUNDS,
    figures,
    finite,
    interleave,
    rounds_for,
)
from benchmarks.peers import OURS, PEERS, Prepared
from benchmarks.rows import Row, rows_of
from benchmarks.shapes import FIXED_COST, QUICK_WORKLOADS, WORKLOADS, Shape, make_case

__all__ = ["rows_of"]  # conftest.py asks each suite for its rows

FIXED_COST_CALLS = 200

# Two contenders that disagree by more than this are not computing the same thing. float32
# rounding in torch's log-space lattice alone reaches a few 1e-6 of the loss, and several percent
# of a gradient entry for the longest inputs.
LOSS_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 0.1


def shape_of(row: Row, quick: bool) -> Shape:
    return (QUICK_WORKLOADS if quick else WORKLOADS)[row.subject]


def describe(row: Row, quick: bool, cpu_target: str, shape: Shape) -> dict[str, Any]:
    """What a line of a table says about its row."""
    info = dataclasses.asdict(row)
    info["workload"] = info.pop("subject")
    return info | {
        "T": shape.frames,
        "N": shape.batch,
        "C": shape.classes,
        "S": shape.labels,
        "origin": shape.origin,
        "cpu_target_used": cpu_target,
        "quick": quick,
    }


def check_agreement(ours: Prepared, peer: Prepared) -> None:
    """Fail where the contenders do not agree; also warms both up."""
    our_loss, our_gradient = ours.evaluate()
    peer_loss, peer_gradient = peer.evaluate()
    if not math.isclose(our_loss, peer_loss, rel_tol=LOSS_TOLERANCE):
        pytest.fail(f"the losses disagree: ours is {our_loss}, the peer's {peer_loss}")
    if our_gradient is None or peer_gradient is None:
        return
    largest = float(peer_gradient.abs().max())
    difference = float(our_gradient.sub_(peer_gradient).abs_().max())
    if not difference <= GRADIENT_TOLERANCE * largest:
        pytest.fail(f"the gradients disagree by {difference}; the largest entry is {largest}")


def test_speed(benchmark: Any, row: Row, quick: bool, threads: int, cpu_target: str) -> None:
    peer = PEERS[row.peer]
    missing = peer.why_missing()
    if missing:
        pytest.skip(missing)
    case = make_case(shape_of(row, quick), row.lengths, row.dtype)
    ours, theirs = (each.prepare(case, row.scores, row.mode) for each in (OURS, peer))
    check_agreement(ours, theirs)
    samples = interleave(
        benchmark,
        ours.step,
        theirs.step,
        rounds=rounds_for(ours.step, theirs.step, quick),
        pause=PAUSE if threads > 1 else 0.0,
        rehearse=True,
    )
    benchmark.group = f"{row.subject} {row.scores} {row.mode}"
    benchmark.extra_info.update(describe(row, quick, cpu_target, case.shape) | figures(samples))


def test_scaling(benchmark: Any, row: Row, quick: bool, threads: int, cpu_target: str) -> None:
    """Ours on several threads against ours on one."""
    case = make_case(shape_of(row, quick), row.lengths, row.dtype)
    ours = OURS.prepare(case, row.scores, row.mode)
    check_agreement(ours, ours)
    samples = interleave(
        benchmark,
        ours.step,
        ours.step,
        rounds=rounds_for(ours.step, ours.step, quick, MOST_ROUNDS_OF_THREADS),
        rehearse=True,
        before_ours=lambda: torch.set_num_threads(threads),
        before_peer=lambda: torch.set_num_threads(1),
    )
    benchmark.group = "scaling"
    benchmark.extra_info.update(describe(row, quick, cpu_target, case.shape) | figures(samples))


def test_fixed_cost(benchmark: Any, row: Row, quick: bool, threads: int, cpu_target: str) -> None:
    case = make_case(FIXED_COST)
    ours, peer = (each.prepare(case, row.scores, row.mode) for each in (OURS, PEERS[row.peer]))
    check_agreement(ours, peer)
    calls = 2 if quick else FIXED_COST_CALLS
    rounds = QUICK_ROUNDS if quick else MOST_ROUNDS
    samples = interleave(benchmark, ours.step, peer.step, rounds=rounds, calls=calls)
    benchmark.group = "fixed cost"
    benchmark.extra_info.update(
        describe(row, quick, cpu_target, case.shape) | figures(samples, calls)
    )


def test_memory(benchmark: Any, row: Row, quick: bool, cpu_target: str) -> None:
    unsupported = memory.why_unsupported()
    if unsupported:
        pytest.skip(unsupported)
    peaks: list[int] = []

    def measure_both() -> None:
        for name in (OURS.name, row.peer):
            peaks.append(memory.measure_in_subprocess("loss", name, row.subject, quick=quick))

    benchmark.pedantic(measure_both, rounds=1)
    shape = shape_of(row, quick)
    benchmark.group = "memory"
    benchmark.extra_info.update(
        describe(row, quick, cpu_target, shape)
        | {
            "ours_bytes": peaks[0],
            "peer_bytes": peaks[1],
            "gradient_bytes": shape.gradient_bytes,
        }
    )


def test_accuracy(benchmark: Any, row: Row, quick: bool, cpu_target: str) -> None:
    case = accuracy.make_accuracy_case(row.subject, quick=quick)
    exact = accuracy.evaluate_oracle(case, row.scores)
    ours = accuracy.errors(
        benchmark.pedantic(accuracy.evaluate_ours, args=(case, row.scores), rounds=1), exact
    )
    peer = accuracy.errors(accuracy.evaluate_torch(case, row.scores), exact)
    doubled = accuracy.errors(accuracy.evaluate_torch64(case, row.scores), exact, where_finite=True)
    frames, batch, classes = case.logits.shape
    shape = Shape(row.subject, frames, batch, classes, case.targets.shape[1], case.description)
    benchmark.group = "accuracy"
    benchmark.extra_info.update(
        describe(row, quick, cpu_target, shape)
        | {
            "case": case.name,
            "ours_loss_error": finite(ours.loss),
            "ours_gradient_error": finite(ours.gradient),
            "peer_loss_error": finite(peer.loss),
            "peer_gradient_error": finite(peer.gradient),
            "torch64_loss_error": finite(doubled.loss),
            "torch64_gradient_error": finite(doubled.gradient),
        }
    )
