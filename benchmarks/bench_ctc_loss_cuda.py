"""The CTC loss on a GPU beside torch's native one and cuDNN's.

``python -m benchmarks.bench_ctc_loss_cuda --out FILE.json``; ``--table FILE.json`` prints the
tables of a stored run. One step is forward and backward from logits. What is timed, with CUDA
events and the contenders in turn:

- "step": calls one after the other, as a training loop makes them. Where the GPU is quicker than
  Python, this is Python's time.
- "cold": one call behind the writing of a buffer larger than the L2 cache, which also hides the
  time that Python takes to launch.
- "graph": a CUDA graph of our step, replayed: the GPU's time alone.
- "kernels": the time of each kernel by the profiler, ours and the peer's. That of the lattice, by
  the frame, is what alpha and beta take together.

What is measured is in the file at every moment: a run that is cut off leaves what it has.

The peers' path from bfloat16 is ``log_softmax(dtype=float32)`` and the float32 loss. Each side has
its lengths where it wants them: ours on the GPU, torch's native loss on the host.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastctc
from benchmarks.shapes import QUICK_WORKLOADS, WORKLOADS, Case, Shape, make_case

DTYPES = ("float32", "bfloat16")
ROUNDS = 15
BLOCK_SECONDS = 0.02  # of calls between two events
# As in the suite for the CPU: torch's float32 gradient is off by several percent on long rows.
LOSS_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 0.1
# Alpha and beta of one frame at once, predicted from machine code of sm_90: 80 to 90 cycles.
STEP_SECONDS = 0.055e-6
LATENCY_FRAMES = 4000
LATENCY_LABELS = (40, 100, 200, 400)

# What the figures should reach on a GPU like an H200.
RATIO = {"A": 10.0, "B": 10.0, "C": 6.0, "D": 10.0, "E": 10.0, "F": 6.0, "G": 6.0}
RATIO_BFLOAT16 = {"C": 10.0, "F": 10.0, "G": 10.0}
RATIO_CUDNN = 3.0
OVER_BYTE_FLOOR = {"C": 1.5, "F": 1.5, "G": 1.5}
MEMORY_RATIO = 1 / 3
LATTICE_US = 0.10  # of a frame, up to
LATTICE_LABELS = 200

Step = Callable[[], tuple[Tensor, Tensor]]


@dataclass
class Contender:
    """Something that gives the mean loss and the gradient by the logits."""

    name: str
    step: Step


def ours(case: Case, logits: Tensor) -> Contender:
    """Everything on the GPU."""
    rest = [t.cuda() for t in (case.targets, case.input_lengths, case.target_lengths)]

    def step() -> tuple[Tensor, Tensor]:
        loss = fastctc.ctc_loss(logits, *rest, from_logits=True)
        return loss, torch.autograd.grad(loss, logits)[0]

    return Contender("fastctc", step)


def _torch_step(logits: Tensor, *rest: Tensor) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        log_probs = F.log_softmax(logits, -1, dtype=torch.float32)
        loss = F.ctc_loss(log_probs, *rest)
        return loss, torch.autograd.grad(loss, logits)[0]

    return step


def native(case: Case, logits: Tensor) -> Contender:
    """torch's own kernels, which int64 targets lead to."""
    step = _torch_step(logits, case.targets.cuda(), case.input_lengths, case.target_lengths)
    return Contender("torch", step)


def cudnn(case: Case, logits: Tensor) -> tuple[Contender | None, str]:
    """cuDNN by way of torch, or None and why not."""
    if not torch.backends.cudnn.is_available():
        return None, "this torch has no cuDNN"
    lengths = case.target_lengths.tolist()
    joined = torch.cat([row[:n] for row, n in zip(case.targets, lengths, strict=True)]).int()
    log_probs = F.log_softmax(logits.detach(), -1, dtype=torch.float32)
    reason = "torch does not choose it (targets of 256 labels and more, for one)"
    for device in ("cuda", "cpu"):
        rest = [t.int().to(device) for t in (joined, case.input_lengths, case.target_lengths)]
        try:
            if not torch._use_cudnn_ctc_loss(log_probs, *rest, 0):
                continue
            step = _torch_step(logits, *rest)
            step()
            torch.cuda.synchronize()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            continue
        return Contender("cudnn", step), ""
    return None, reason


def disagreement(left: Contender, right: Contender) -> str | None:
    """A sentence where two contenders do not compute the same; also warms both up."""
    (loss, gradient), (other_loss, other_gradient) = left.step(), right.step()
    if not math.isclose(loss.item(), other_loss.item(), rel_tol=LOSS_TOLERANCE):
        return f"loss {loss.item()} of {left.name}, {other_loss.item()} of {right.name}"
    largest = other_gradient.abs().max().item()
    off = (gradient.float() - other_gradient.float()).abs().max().item()
    if not off <= GRADIENT_TOLERANCE * largest:
        return f"gradients of {left.name} and {right.name} are {off} apart, of {largest} at most"
    return None


def _between_events(work: Callable[[], object]) -> float:
    """Seconds on the GPU's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _repeated(step: Step, calls: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(calls):
            step()

    return work


def time_steps(contenders: Sequence[Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds per call, each round with a block of every contender."""
    calls = {}
    for each in contenders:
        _repeated(each.step, 3)()
        torch.cuda.synchronize()
        seconds = _between_events(_repeated(each.step, 3)) / 3
        calls[each.name] = max(1, min(200, round(BLOCK_SECONDS / max(seconds, 1e-7))))
    samples: dict[str, list[float]] = {each.name: [] for each in contenders}
    for _ in range(rounds):
        for each in contenders:
            count = calls[each.name]
            torch.cuda.synchronize()
            samples[each.name].append(_between_events(_repeated(each.step, count)) / count)
    return samples


def time_cold(contenders: Sequence[Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of single calls that find nothing of their input in the L2 cache."""
    l2_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
    buffer = torch.empty(max(2**29, 4 * l2_bytes), dtype=torch.uint8, device="cuda")
    samples: dict[str, list[float]] = {each.name: [] for each in contenders}
    for _ in range(rounds):
        for each in contenders:
            torch.cuda.synchronize()
            buffer.zero_()
            samples[each.name].append(_between_events(each.step))
    return samples


def time_graph(contender: Contender, rounds: int) -> list[float]:
    """Seconds of a replayed graph of one step."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        contender.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = contender.step()
    graph.replay()
    seconds = _between_events(graph.replay)
    calls = max(1, min(200, round(BLOCK_SECONDS / max(seconds, 1e-7))))

    def replay() -> None:
        for _ in range(calls):
            graph.replay()

    samples = [_between_events(replay) / calls for _ in range(rounds)]
    del held
    return samples


def kernel_seconds(contender: Contender, steps: int = 3) -> dict[str, float]:
    """Seconds per step of each kernel and copy, by name; empty where nothing can tell."""
    wanted = torch.profiler.ProfilerActivity
    if wanted.CUDA not in torch.profiler.supported_activities():
        return {}
    with torch.profiler.profile(activities=[wanted.CPU, wanted.CUDA]) as profile:
        _repeated(contender.step, steps)()
        torch.cuda.synchronize()
    found = profile.key_averages()
    return {
        event.key: event.self_device_time_total / 1e6 / steps
        for event in found
        if event.device_type == torch.autograd.DeviceType.CUDA
    }


def lattice_seconds(kernels: dict[str, float]) -> float | None:
    """Seconds per step of alpha and beta, or None where no profiler told."""
    return sum(seconds for name, seconds in kernels.items() if "lattice" in name) or None


def peak_bytes(contender: Contender) -> int:
    """Memory that one step takes above what is there before it, the gradient included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = contender.step()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def copy_bandwidth(rounds: int = 10) -> float:
    """Bytes per second of a copy on the device, read and written ones."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").fill_(7)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = [_between_events(lambda: target.copy_(source)) for _ in range(rounds)]
    return 2 * source.numel() / statistics.median(seconds)


def floors(shape: Shape, itemsize: int, bandwidth: float) -> tuple[float, float]:
    """Least seconds for the bytes (logits read twice, gradient written), and for the frames."""
    moved = 3 * shape.frames * shape.batch * shape.classes * itemsize
    return moved / bandwidth, shape.frames * STEP_SECONDS


def compare(
    shape: Shape, dtype: str, bandwidth: float, rounds: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one workload, one for each peer, and what went wrong."""
    case = make_case(shape, dtype=dtype)
    logits = case.logits.detach().cuda().requires_grad_()
    us, torch_native = ours(case, logits), native(case, logits)
    peer, reason = cudnn(case, logits)
    peers = [torch_native] if peer is None else [torch_native, peer]
    problems = [text for each in peers if (text := disagreement(us, each))]
    everyone = [us, *peers]
    warm, cold = time_steps(everyone, rounds), time_cold(everyone, rounds)
    graph = statistics.median(time_graph(us, rounds))
    kernels = {each.name: kernel_seconds(each) for each in everyone}
    lattice = lattice_seconds(kernels["fastctc"])
    memory = {each.name: peak_bytes(each) for each in everyone}
    byte_floor, frame_floor = floors(shape, logits.element_size(), bandwidth)
    shared = {
        "workload": shape.name,
        "dtype": dtype,
        "T": shape.frames,
        "N": shape.batch,
        "C": shape.classes,
        "S": shape.labels,
        "ours_step_s": statistics.median(warm["fastctc"]),
        "ours_cold_s": statistics.median(cold["fastctc"]),
        "ours_graph_s": graph,
        "ours_kernels_s": kernels["fastctc"],
        "lattice_us_per_frame": None if lattice is None else lattice / shape.frames * 1e6,
        "ours_peak_bytes": memory["fastctc"],
        "byte_floor_s": byte_floor,
        "frame_floor_s": frame_floor,
        "over_byte_floor": graph / byte_floor,
        "share_of_floor": (byte_floor + frame_floor) / graph,
        "cudnn_not_measured": reason or None,
    }
    rows = []
    for each in peers:
        ratios = [p / o for p, o in zip(warm[each.name], warm["fastctc"], strict=True)]
        rows.append(
            shared
            | {
                "peer": each.name,
                "peer_step_s": statistics.median(warm[each.name]),
                "peer_cold_s": statistics.median(cold[each.name]),
                "peer_kernels_s": sum(kernels[each.name].values()) or None,
                "peer_peak_bytes": memory[each.name],
                "ratio": statistics.median(warm[each.name]) / shared["ours_step_s"],
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "cold_ratio": statistics.median(cold[each.name]) / shared["ours_cold_s"],
                "memory_ratio": memory["fastctc"] / memory[each.name],
            }
        )
    return rows, [f"{shape.name} {dtype}: {problem}" for problem in problems]


def latency(labels: int, frames: int, rounds: int) -> dict[str, Any]:
    """One row, where nothing but the chain of frames counts."""
    case = make_case(Shape(f"latency {labels}", frames, 1, 32, labels, "one utterance"))
    us = ours(case, case.logits.detach().cuda().requires_grad_())
    us.step()
    graph = statistics.median(time_graph(us, rounds))
    lattice = lattice_seconds(kernel_seconds(us))
    return {
        "T": frames,
        "S": labels,
        "graph_us_per_frame": graph / frames * 1e6,
        "lattice_us_per_frame": None if lattice is None else lattice / frames * 1e6,
    }


def missed(row: dict[str, Any]) -> list[str]:
    """What a row should reach and does not."""
    name, found = row["workload"], []
    if row["peer"] == "cudnn":
        wanted = RATIO_CUDNN
    else:
        table = RATIO | (RATIO_BFLOAT16 if row["dtype"] == "bfloat16" else {})
        wanted = table[name]
        if row["memory_ratio"] > MEMORY_RATIO:
            found.append(f"memory {row['memory_ratio']:.2f} > {MEMORY_RATIO:.2f}")
    if row["ratio"] < wanted:
        found.append(f"{row['ratio']:.1f}x < {wanted:.0f}x")
    over = row["ours_graph_s"] / row["byte_floor_s"]
    if over > OVER_BYTE_FLOOR.get(name, math.inf):
        found.append(f"{over:.2f} byte floors > {OVER_BYTE_FLOOR[name]}")
    lattice = row["lattice_us_per_frame"]
    if row["S"] <= LATTICE_LABELS and lattice is not None and lattice > LATTICE_US:
        found.append(f"{lattice:.3f} us per frame > {LATTICE_US}")
    return found


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def render(report: dict[str, Any]) -> str:
    """The tables of a stored run."""
    lines = [
        f"Copying moves {report['copy_bytes_per_s'] / 1e12:.2f} TB/s. Times in microseconds, the"
        " lattice's of one frame.",
        "",
        "| workload | dtype | peer | ours | peer | times | cold | graph | floor | share | lattice |"
        " memory | missed |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in report["rows"]:
        floor = row["byte_floor_s"] + row["frame_floor_s"]
        figures = [
            f"{row['ours_step_s'] * 1e6:.0f}",
            f"{row['peer_step_s'] * 1e6:.0f}",
            f"{row['ratio']:.1f}",
            f"{row['cold_ratio']:.1f}",
            f"{row['ours_graph_s'] * 1e6:.0f}",
            f"{floor * 1e6:.0f}",
            f"{row['share_of_floor']:.0%}",
            _microseconds(row["lattice_us_per_frame"]),
            f"{row['memory_ratio']:.2f}",
        ]
        names = [row["workload"], row["dtype"], row["peer"]]
        short = [] if report["quick"] else missed(row)
        cells = [*names, *figures, "; ".join(short) or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| one row of | lattice, us per frame | all kernels, us per frame |"]
    lines.append("|---|--:|--:|")
    for row in report["latency"]:
        told = _microseconds(row["lattice_us_per_frame"])
        shown = f"T={row['T']} S={row['S']}"
        lines.append(f"| {shown} | {told} | {row['graph_us_per_frame']:.3f} |")
    return "\n".join(lines)


def measure(quick: bool, names: Sequence[str], out: Path | None = None) -> dict[str, Any]:
    """Everything, a line to each row as it is there, and all rows so far to the file `out`."""
    workloads = QUICK_WORKLOADS if quick else WORKLOADS
    rounds = 3 if quick else ROUNDS
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "fastctc": fastctc.build_info(),
        "quick": quick,
        "rounds": rounds,
        "copy_bytes_per_s": bandwidth,
        "rows": [],
        "latency": [],
        "problems": [],
    }
    for labels in LATENCY_LABELS:
        frames = 10 * labels if quick else LATENCY_FRAMES
        try:
            report["latency"].append(latency(labels, frames, rounds))
        except Exception as error:  # as below
            report["problems"].append(f"latency of {labels} labels: {error}")
    for dtype in DTYPES:
        for name in names:
            started = time.monotonic()
            try:
                rows, problems = compare(workloads[name], dtype, bandwidth, rounds)
            except Exception as error:  # one workload that fails leaves the others
                rows, problems = [], [f"{name} {dtype}: {error}"]
            report["rows"] += rows
            report["problems"] += problems
            torch.cuda.empty_cache()
            store(report, out)
            for row in rows:
                print(
                    f"{name} {dtype} {row['peer']}: {row['ratio']:.1f}x "
                    f"({time.monotonic() - started:.1f} s to measure)",
                    flush=True,
                )
    return report


def store(report: dict[str, Any], out: Path | None) -> None:
    """The report so far, in the file's place at once."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    begun = out.with_suffix(".part")
    begun.write_text(json.dumps(report, indent=1) + "\n")
    begun.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a smoke test")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="such as A,C")
    parser.add_argument("--table", type=Path, help="measure nothing: print the tables of this JSON")
    options = parser.parse_args(arguments)
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return 0
    if not torch.cuda.is_available() or not fastctc.build_info()["cuda"]:
        print("needs a CUDA device, and fastctc built with CUDA", file=sys.stderr)
        return 1
    report = measure(options.quick, options.workloads.split(","), options.out)
    print(render(report))
    print("\n".join(f"PROBLEM {problem}" for problem in report["problems"]))
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main())
