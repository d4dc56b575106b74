"""Spectrogram normalisation on the CPU beside torch, eager and compiled: speed, memory, accuracy.

Run by ``python -m benchmarks --suite norm``. A step is forward and backward in float32, on a batch
whose utterances have 60 to 100 % of the longest one's frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.interleave import PAUSE, figures, finite, interleave, rounds_for
from fastctc import SequenceBatchNorm, spectrogram_norm

EPS = 1e-5
# What the two-pass formula and torch's own batch normalisation leave between them in float32.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Batch:
    """A batch: its axes are those of the layout, and statistics run over `over`."""

    sizes: tuple[int, ...]
    layout: str
    over: str

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * 4


BATCHES = {
    "16x1500x161": Batch((16, 1500, 161), "NTF", "T"),
    "64x800x80": Batch((64, 800, 80), "NTF", "T"),
    "32x4000x257": Batch((32, 4000, 257), "NTF", "T"),
    "EMG 1100x32x2x16x33": Batch((1100, 32, 2, 16, 33), "TNBEF", "NTF"),
    "sequence 16x1500x161": Batch((16, 1500, 161), "NTF", "NT"),
    "sequence 64x800x80": Batch((64, 800, 80), "NTF", "NT"),
    "sequence 32x700x800": Batch((32, 700, 800), "NTF", "NT"),
}
QUICK_BATCHES = {
    name: Batch(tuple(min(n, 5) for n in batch.sizes), batch.layout, batch.over)
    for name, batch in BATCHES.items()
}
ACCURACY_CASES = ("ordinary", "mean of 1e4 deviations", "outlier in the first frame")


@dataclass(frozen=True)
class Row:
    """One comparison; ``cpu_target`` "auto" is the best that the machine has."""

    kind: str
    subject: str
    peer: str = "eager"
    threads: int = 1
    cpu_target: str = "auto"

    @property
    def id(self) -> str:
        subject = self.subject.replace(" ", "-")
        return f"{subject}-{self.peer}-{self.threads}t-{self.cpu_target}"


def is_sequence(batch: Batch) -> bool:
    """Whether `SequenceBatchNorm` is what normalises it."""
    return batch.over == "NT"


def peers_of(batch: Batch) -> tuple[str, str]:
    return ("eager", "gather") if is_sequence(batch) else ("eager", "compiled")


def rows_of(kind: str, *, cpu_targets: tuple[str, ...], peers: tuple[str, ...]) -> list[Row]:
    """The rows of one kind, in the order to run them in; `peers` are those of the loss."""
    del peers
    match kind:
        case "norm":
            rows = []
            for subject, batch in BATCHES.items():
                for peer in peers_of(batch):
                    rows += [Row(kind, subject, peer, threads) for threads in (1, 2)]
                rows += [Row(kind, subject, cpu_target=t) for t in cpu_targets if t != "auto"]
            return rows
        case "norm_memory":
            return [
                Row(kind, subject, peer)
                for subject, batch in BATCHES.items()
                for peer in peers_of(batch)
                if peer != "compiled"  # compiling takes memory of its own
            ]
        case "norm_accuracy":
            return [Row(kind, name, cpu_target=t) for name in ACCURACY_CASES for t in cpu_targets]
    raise ValueError(f"unknown kind of row: {kind!r}")


def masked(x: Tensor, mask: Tensor, count: Tensor, axes: tuple[int, ...]) -> Tensor:
    """What is usually written: two passes for the statistics, masked."""
    mean = (x * mask).sum(axes, keepdim=True) / count
    deviation = (x - mean) * mask
    var = deviation.square().sum(axes, keepdim=True) / count
    return deviation * torch.rsqrt(var + EPS)


class Case:
    """Input, lengths and mask of a batch, and what each contender makes of them.

    Masks and counts of valid frames are there beforehand, for the peers.
    """

    def __init__(self, batch: Batch) -> None:
        generator = torch.Generator().manual_seed(0)
        layout, sizes = batch.layout, batch.sizes
        self.batch = batch
        self.x = torch.randn(sizes, generator=generator).requires_grad_()
        self.grad = torch.randn(sizes, generator=generator)
        utterances, frames = (sizes[layout.index(axis)] for axis in "NT")
        self.lengths = torch.linspace(0.6 * frames, frames, utterances).long()
        self.valid = torch.arange(frames) < self.lengths[:, None]
        ordered = self.valid if layout.index("N") < layout.index("T") else self.valid.t()
        self.mask = ordered.reshape(
            [n if axis in "NT" else 1 for axis, n in zip(layout, sizes, strict=True)]
        ).float()
        self.axes = tuple(layout.index(axis) for axis in batch.over)
        bins = sizes[layout.index("F")] if "F" in batch.over else 1
        self.count = self.mask.sum(self.axes, keepdim=True) * bins

    def ours(self) -> Callable[[], Tensor]:
        x, lengths, batch = self.x, self.lengths, self.batch
        if is_sequence(batch):
            module = SequenceBatchNorm(x.shape[-1], affine=False, eps=EPS)
            return lambda: module(x, lengths)
        return lambda: spectrogram_norm(x, lengths, layout=batch.layout, over=batch.over, eps=EPS)

    def peer(self, name: str) -> Callable[[], Tensor]:
        x, arguments = self.x, (self.mask, self.count, self.axes)
        if name == "eager":
            return lambda: masked(x, *arguments)
        if name == "compiled":
            # Forget earlier batches: with them, sizes would be compiled as variables.
            torch._dynamo.reset()
            compiled = torch.compile(masked, dynamic=False)
            return lambda: compiled(x, *arguments)
        module, valid = nn.BatchNorm1d(x.shape[-1], affine=False, eps=EPS), self.valid

        def gather() -> Tensor:
            return torch.zeros_like(x).masked_scatter(valid[..., None], module(x[valid]))

        return gather

    def evaluate(self, contender: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """y and the gradient of x."""
        y = contender()
        (gradient,) = torch.autograd.grad(y, self.x, self.grad)
        return y.detach(), gradient

    def step(self, contender: Callable[[], Tensor]) -> Callable[[], object]:
        """What is timed: a result and a gradient that were not there before."""

        def run() -> None:
            contender().backward(self.grad)
            self.x.grad = None

        return run


def describe(row: Row, quick: bool, cpu_target: str) -> dict[str, Any]:
    """What a line of a table says about its row."""
    info = asdict(row)
    info["workload"] = info.pop("subject")
    return info | {"cpu_target_used": cpu_target, "quick": quick}


def batch_of(row: Row, quick: bool) -> Batch:
    return (QUICK_BATCHES if quick else BATCHES)[row.subject]


def test_norm(benchmark: Any, row: Row, quick: bool, threads: int, cpu_target: str) -> None:
    case = Case(batch_of(row, quick))
    ours, peer = case.ours(), case.peer(row.peer)
    for mine, theirs in zip(case.evaluate(ours), case.evaluate(peer), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    steps = (case.step(ours), case.step(peer))
    samples = interleave(
        benchmark,
        *steps,
        rounds=rounds_for(*steps, quick),
        pause=PAUSE if threads > 1 else 0.0,
        rehearse=True,
    )
    benchmark.group = f"norm {row.subject}"
    benchmark.extra_info.update(describe(row, quick, cpu_target) | figures(samples))


def test_norm_memory(benchmark: Any, row: Row, quick: bool, cpu_target: str) -> None:
    unsupported = memory.why_unsupported()
    if unsupported:
        pytest.skip(unsupported)
    peaks: list[int] = []

    def measure_both() -> None:
        for name in ("fastctc", row.peer):
            peaks.append(memory.measure_in_subprocess("norm", name, row.subject, quick=quick))

    benchmark.pedantic(measure_both, rounds=1)
    benchmark.group = "norm memory"
    benchmark.extra_info.update(
        describe(row, quick, cpu_target)
        | {
            "ours_bytes": peaks[0],
            "peer_bytes": peaks[1],
            "input_bytes": batch_of(row, quick).bytes,
        }
    )


def step_of(contender: str, batch: Batch) -> Callable[[], object]:
    """A step of one contender alone."""
    case = Case(batch)
    return case.step(case.ours() if contender == "fastctc" else case.peer(contender))


def accuracy_input(name: str, quick: bool) -> tuple[Tensor, Tensor]:
    """A batch whose deviations are about 1, and its lengths."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 40 if quick else 1500, 80, generator=generator)
    if name == "mean of 1e4 deviations":
        x += 1e4
    elif name == "outlier in the first frame":
        x[:, 0] = 1e4
    return x, torch.tensor([x.shape[1], x.shape[1] // 2, x.shape[1], 7])


def test_norm_accuracy(
    benchmark: Any, row: Row, quick: bool, threads: int, cpu_target: str
) -> None:
    """The largest error of a result against float64: in deviations, of large values a share."""
    x, lengths = accuracy_input(row.subject, quick)
    mask = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
    count = mask.sum(1, keepdim=True)
    exact = masked(x.double(), mask, count, (1,))

    def error(y: Tensor) -> float | None:
        return finite(float(((y.double() - exact).abs() / exact.abs().clamp(min=1)).max()))

    ours = benchmark.pedantic(spectrogram_norm, args=(x, lengths), rounds=1)
    benchmark.group = "norm accuracy"
    benchmark.extra_info.update(
        describe(row, quick, cpu_target)
        | {"ours_error": error(ours), "peer_error": error(masked(x, mask.float(), count, (1,)))}
    )
