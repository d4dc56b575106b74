"""Spectrogram normalisation on a GPU beside torch, eager and compiled.

``python -m benchmarks.bench_spectrogram_norm_cuda --out FILE.json``; ``--table FILE.json`` prints
the table of a stored run. One step is forward and backward, or forward alone. What is timed is told
in `bench_ctc_loss_cuda`: ours is the public call, through autograd as its peers. The share of the
floor is that of a graph of the bare kernels, whose time is the GPU's alone. The floor counts x read
twice and y written in the forward pass, and x and its gradient read twice and one gradient written
in the backward one, at the bandwidth of a copy measured here. What lies in the L2 cache between two
passes is read for less, so small batches may exceed it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_ctc_loss_cuda import (
    Contender,
    copy_bandwidth,
    peak_bytes,
    time_cold,
    time_graph,
    time_steps,
)
from fastctc import spectrogram_norm
from fastctc._norm import LOG1P, LOG10, NO_LOG, NormOptions

ROUNDS = 15
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of values of about 1

LOG_NAMES = {NO_LOG: None, LOG1P: "log1p", LOG10: "log10"}

# What the figures should reach on a GPU like an H200.
RATIO_EAGER = 4.0
SHARE_OF_FLOOR = 0.85


@dataclass(frozen=True)
class Workload:
    """A batch in canonical shape, utterances of three quarters to all of its frames."""

    name: str
    shape: tuple[int, int, int, int, int]
    over_batch: bool
    over_freq: bool
    log: int
    time_first: bool


WORKLOADS = (
    Workload("16x1500x161", (16, 1500, 1, 1, 161), False, False, LOG1P, False),
    Workload("64x800x80", (64, 800, 1, 1, 80), False, False, NO_LOG, False),
    Workload("32x4000x257", (32, 4000, 1, 1, 257), False, False, LOG1P, False),
    Workload("EMG 1100x32x2x16x33", (32, 1100, 2, 16, 33), True, True, LOG10, True),
    Workload("batch norm 32x700x800", (32, 700, 1, 1, 800), True, False, NO_LOG, False),
)


def quick(workload: Workload) -> Workload:
    """The same, tiny."""
    _, _, b, e, f = workload.shape
    return Workload(**(asdict(workload) | {"shape": (2, 50, b, e, min(f, 40))}))


def options_of(workload: Workload) -> NormOptions:
    return NormOptions(workload.over_batch, workload.over_freq, workload.log, 1e-6, 1e-5)


def masked_torch(workload: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    """What users write: masked sums in float32, the variance by a second pass."""
    axes = (0, 1) if workload.over_batch else (1,)
    axes = (*axes, 4) if workload.over_freq else axes

    def forward(x: Tensor, valid: Tensor) -> Tensor:
        v = x.float()
        if workload.log == LOG1P:
            v = torch.log1p(v)
        elif workload.log == LOG10:
            v = torch.log10(v + 1e-6)
        count = valid.sum(axes, keepdim=True) * (x.shape[4] if workload.over_freq else 1)
        mean = (v * valid).sum(axes, keepdim=True) / count
        centred = (v - mean) * valid
        var = centred.square().sum(axes, keepdim=True) / count
        return (centred * torch.rsqrt(var + 1e-5)).to(x.dtype)

    return forward


def batch_of(workload: Workload, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, the gradient of y, the lengths and the mask of the valid frames."""
    n, t, b, e, f = workload.shape
    generator = torch.Generator("cuda").manual_seed(0)
    memory = (t, n, b, e, f) if workload.time_first else workload.shape
    x, grad = (torch.rand(memory, device="cuda", generator=generator).to(dtype) for _ in range(2))
    if workload.time_first:
        x, grad = x.transpose(0, 1), grad.transpose(0, 1)
    lengths = torch.linspace(0.75 * t, t, n, device="cuda").long()
    valid = (torch.arange(t, device="cuda") < lengths[:, None]).view(n, t, 1, 1, 1)
    return x, grad, lengths, valid


def contenders(workload: Workload, dtype: torch.dtype, backward: bool) -> list[Contender]:
    """Ours by the public call, torch eager and torch compiled, on the same batch."""
    x, grad, lengths, valid = batch_of(workload, dtype)
    chosen = options_of(workload)
    leaf = x.detach().requires_grad_(backward)

    def public(x: Tensor, valid: Tensor) -> Tensor:
        return spectrogram_norm(
            x,
            lengths,
            layout="NTBEF",
            over="T" + "N" * workload.over_batch + "F" * workload.over_freq,
            log=LOG_NAMES[workload.log],
            log_eps=chosen.log_eps,
            eps=chosen.eps,
        )

    def through(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        def step() -> tuple[Tensor, Tensor]:
            y = function(leaf, valid)
            return y, torch.autograd.grad(y, leaf, grad)[0] if backward else y

        return step

    eager = masked_torch(workload)
    return [
        Contender("fastctc", through(public)),
        Contender("torch eager", through(eager)),
        Contender("torch.compile", through(torch.compile(eager, dynamic=False))),
    ]


def bare_kernels(workload: Workload, dtype: torch.dtype, backward: bool) -> Contender:
    """The kernels without checks and autograd, for the share of the floor."""
    from fastctc.triton import spectrogram_norm as kernels

    x, grad, lengths, _ = batch_of(workload, dtype)
    chosen = options_of(workload)

    def step() -> tuple[Tensor, Tensor]:
        y, mean, var = kernels.forward(x, lengths, None, None, None, 0, chosen)
        if not backward:
            return y, y
        dx, _, _ = kernels.backward(grad, x, lengths, mean, var, None, None, 0, chosen)
        return y, dx

    return Contender("kernels", step)


def floor_bytes(workload: Workload, dtype: torch.dtype, backward: bool) -> int:
    """The least that two passes move: valid frames are read, all are written."""
    n, t, b, e, f = workload.shape
    frame = b * e * f * dtype.itemsize
    valid = int(torch.linspace(0.75 * t, t, n).long().sum()) * frame
    forward = 2 * valid + n * t * frame
    return forward + (4 * valid + n * t * frame if backward else 0)


def disagreement(left: Contender, right: Contender, tolerance: float) -> str | None:
    """A sentence where two contenders do not compute the same; also warms both up."""
    for name, ours, theirs in zip(("y", "the gradient"), left.step(), right.step(), strict=True):
        off = (ours.float() - theirs.float()).abs().max().item()
        largest = theirs.float().abs().max().item()
        if not off <= tolerance * largest:
            return f"{name} of {left.name} and {right.name} is {off} apart, of {largest} at most"
    return None


def compare(
    workload: Workload, dtype: str, backward: bool, bandwidth: float, rounds: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one workload, one for each peer, and what went wrong."""
    chosen = getattr(torch, dtype)
    everyone = contenders(workload, chosen, backward)
    us, *peers = everyone
    problems = [text for peer in peers if (text := disagreement(us, peer, TOLERANCE[dtype]))]
    warm, cold = time_steps(everyone, rounds), time_cold(everyone, rounds)
    bare = bare_kernels(workload, chosen, backward)
    graph = statistics.median(time_graph(bare, rounds))
    floor = floor_bytes(workload, chosen, backward) / bandwidth
    memory = {each.name: peak_bytes(each) for each in everyone}
    ours = statistics.median(warm[us.name])
    rows = [
        {
            "workload": workload.name,
            "dtype": dtype,
            "pass": "both" if backward else "forward",
            "peer": peer.name,
            "ours_step_s": ours,
            "peer_step_s": statistics.median(warm[peer.name]),
            "ratio": statistics.median(warm[peer.name]) / ours,
            "cold_ratio": statistics.median(cold[peer.name]) / statistics.median(cold[us.name]),
            "ours_graph_s": graph,
            "byte_floor_s": floor,
            "share_of_floor": floor / graph,
            "ours_peak_bytes": memory[us.name],
            "peer_peak_bytes": memory[peer.name],
        }
        for peer in peers
    ]
    return rows, [f"{workload.name} {dtype}: {problem}" for problem in problems]


def missed(row: dict[str, Any]) -> list[str]:
    """What a row should reach and does not."""
    found = []
    wanted = RATIO_EAGER if row["peer"] == "torch eager" else -math.inf
    if row["ratio"] < wanted:
        found.append(f"{row['ratio']:.1f}x < {wanted:.0f}x")
    if row["share_of_floor"] < SHARE_OF_FLOOR:
        found.append(f"{row['share_of_floor']:.0%} < {SHARE_OF_FLOOR:.0%} of the floor")
    return found


def render(report: dict[str, Any]) -> str:
    """The table of a stored run."""
    lines = [
        f"Copying moves {report['copy_bytes_per_s'] / 1e12:.2f} TB/s. Times in microseconds.",
        "",
        "| workload | dtype | pass | peer | ours | peer | times | cold | graph | floor | share |"
        " missed |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in report["rows"]:
        cells = [row["workload"], row["dtype"], row["pass"], row["peer"]]
        cells += [f"{row[name] * 1e6:.0f}" for name in ("ours_step_s", "peer_step_s")]
        cells += [f"{row['ratio']:.1f}", f"{row['cold_ratio']:.1f}"]
        cells += [f"{row[name] * 1e6:.0f}" for name in ("ours_graph_s", "byte_floor_s")]
        cells += [f"{row['share_of_floor']:.0%}", "; ".join(missed(row)) or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(small: bool) -> dict[str, Any]:
    """Everything; a workload that fails leaves the others."""
    import triton

    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "quick": small,
        "copy_bytes_per_s": bandwidth,
        "rows": [],
        "problems": [],
    }
    for dtype in TOLERANCE:
        for workload in WORKLOADS:
            # Compiling the peer takes most of the time: half precision is timed in training only.
            for backward in (False, True) if dtype == "float32" else (True,):
                chosen = quick(workload) if small else workload
                try:
                    rows, problems = compare(
                        chosen, dtype, backward, bandwidth, 3 if small else ROUNDS
                    )
                except RuntimeError as error:
                    rows, problems = [], [f"{workload.name} {dtype}: {error}"]
                report["rows"] += rows
                report["problems"] += problems
                torch.cuda.empty_cache()
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a smoke test")
    parser.add_argument("--table", type=Path, help="measure nothing: print the table of this JSON")
    options = parser.parse_args(arguments)
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return 0
    from fastctc.triton import why_missing

    reason = why_missing() if torch.cuda.is_available() else "there is no CUDA device"
    if reason:
        print(f"needs a GPU and triton: {reason}", file=sys.stderr)
        return 1
    report = measure(options.quick)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))
    print("\n".join(f"PROBLEM {problem}" for problem in report["problems"]))
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main())
