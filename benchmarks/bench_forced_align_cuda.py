"""Forced alignment on a GPU, beside torchaudio's where that is installed.

``python -m benchmarks.bench_forced_align_cuda --out FILE.json``. One step is a batch from logits,
on the GPU throughout: "step" is calls one after the other, "graph" a CUDA graph of ours replayed,
the GPU's time alone. torchaudio takes log-probabilities of one utterance a call, so its log-softmax
and its loop over the batch are in its time. The last rows are single utterances, where nothing but
the chain of frames counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastctc
from benchmarks.bench_ctc_loss_cuda import (
    LATENCY_FRAMES,
    LATENCY_LABELS,
    ROUNDS,
    Contender,
    kernel_seconds,
    peak_bytes,
    time_graph,
    time_steps,
)
from benchmarks.shapes import QUICK_WORKLOADS, WORKLOADS, Case, Shape, make_case

SUBJECTS = ("A", "B", "C", "D", "E", "G")
RATIO = 10.0  # what it should reach


def ours(case: Case, logits: Tensor) -> Contender:
    """Everything on the GPU, and nobody waits for it."""
    rest = [t.cuda() for t in (case.targets, case.input_lengths, case.target_lengths)]
    return Contender(
        "fastctc",
        lambda: fastctc.forced_align(logits, *rest, from_logits=True, on_impossible="mark"),
    )


def torchaudio(case: Case, logits: Tensor) -> Contender:
    """One utterance after the other, with targets and log-probabilities on the GPU."""
    from torchaudio.functional import forced_align

    targets = case.targets.cuda()
    lengths = list(zip(case.input_lengths.tolist(), case.target_lengths.tolist(), strict=True))

    def step() -> tuple[Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        rows = [
            forced_align(log_probs[n : n + 1, :frames].contiguous(), targets[n : n + 1, :labels])
            for n, (frames, labels) in enumerate(lengths)
        ]
        return torch.cat([path for path, _ in rows]), torch.cat([score for _, score in rows])

    return Contender("torchaudio", step)


def measure_row(shape: Shape, rounds: int, with_peer: bool) -> dict[str, Any]:
    """One workload's line."""
    case = make_case(shape)
    logits = case.logits.detach().transpose(0, 1).contiguous().cuda()
    us = ours(case, logits)
    everyone = [us, torchaudio(case, logits)] if with_peer else [us]
    scores = [each.step()[1].double().sum(1) for each in everyone]
    for other in scores[1:]:
        torch.testing.assert_close(scores[0], other, rtol=1e-4, atol=1e-2)
    times = time_steps(everyone, rounds)
    graph = statistics.median(time_graph(us, rounds))
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    return {
        "workload": shape.name,
        "T": shape.frames,
        "N": shape.batch,
        "C": shape.classes,
        "S": shape.labels,
        "ours_step_s": medians["fastctc"],
        "ours_graph_s": graph,
        "graph_us_per_frame": graph / shape.frames * 1e6,
        "ours_kernels_s": kernel_seconds(us),
        "ours_peak_bytes": peak_bytes(us),
        "peer_step_s": medians.get("torchaudio"),
        "ratio": medians["torchaudio"] / medians["fastctc"] if with_peer else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a smoke test")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or not fastctc.build_info()["cuda"]:
        print("needs a CUDA device, and fastctc built with CUDA", file=sys.stderr)
        return 1
    with_peer = importlib.util.find_spec("torchaudio") is not None
    workloads = QUICK_WORKLOADS if options.quick else WORKLOADS
    shapes = [workloads[name] for name in SUBJECTS]
    frames = 400 if options.quick else LATENCY_FRAMES
    for labels in LATENCY_LABELS:
        longest = min(labels, frames // 4)
        shapes.append(Shape(f"one row, {longest}", frames, 1, 32, longest, "one utterance"))
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "fastctc": fastctc.build_info(),
        "quick": options.quick,
        "peer": "torchaudio" if with_peer else None,
        "rows": [],
    }
    print("workload: us per batch, us of a graph, us a frame, times as fast as torchaudio")
    for shape in shapes:
        row = measure_row(shape, 3 if options.quick else ROUNDS, with_peer)
        report["rows"].append(row)
        told = "not measured" if row["ratio"] is None else f"{row['ratio']:.1f} (of {RATIO:.0f})"
        print(
            f"{shape.name}: {row['ours_step_s'] * 1e6:.0f}, {row['ours_graph_s'] * 1e6:.0f}, "
            f"{row['graph_us_per_frame']:.3f}, {told}",
            flush=True,
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
