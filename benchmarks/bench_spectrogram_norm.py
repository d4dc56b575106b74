"""Spectrogram normalisation on one thread beside torch, eager and compiled, measured in turn.

Processor time of forward and backward in float32: on a machine that is shared it says more than
elapsed time. Each timed step follows an untimed one of its own side. Utterances are 60 to 100 % of
the longest. ``python -m benchmarks.bench_spectrogram_norm`` prints a table and, with ``--out
FILE.json``, stores it; ``-k TEXT`` takes the rows whose name has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_cpu
from fastctc import SequenceBatchNorm, spectrogram_norm

EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """A batch: its axes are those of the layout."""

    name: str
    sizes: tuple[int, ...]
    layout: str
    over: str


UTTERANCES = ((16, 1500, 161), (64, 800, 80), (32, 4000, 257))
SHAPES = [
    *[Shape("x".join(map(str, s)), s, "NTF", "T") for s in UTTERANCES],
    Shape("emg 1100x32x2x16x33", (1100, 32, 2, 16, 33), "TNBEF", "NTF"),
    *[Shape("sequence " + "x".join(map(str, s)), s, "NTF", "NT") for s in UTTERANCES[:2]],
]
# Times as fast as each peer, to be reached.
TARGETS = {"eager": 6.0, "compiled": 1.3}
SEQUENCE_TARGETS = {"eager": 8.0, "gather": 1.5}


class Case:
    """Input, lengths and mask of a shape, and what each contender makes of them."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        layout, sizes = shape.layout, shape.sizes
        self.shape = shape
        self.x = torch.randn(sizes, generator=generator).requires_grad_()
        self.grad = torch.randn(sizes, generator=generator)
        batch, frames = (sizes[layout.index(axis)] for axis in "NT")
        self.lengths = torch.linspace(0.6 * frames, frames, batch).long()
        valid = torch.arange(frames) < self.lengths[:, None]
        self.valid = valid
        order = valid if layout.index("N") < layout.index("T") else valid.t()
        self.mask = order.reshape(
            [n if a in "NT" else 1 for a, n in zip(layout, sizes, strict=True)]
        )
        self.mask = self.mask.float()
        self.axes = tuple(layout.index(axis) for axis in shape.over)
        bins = sizes[layout.index("F")] if "F" in shape.over else 1
        self.count = self.mask.sum(self.axes, keepdim=True) * bins
        self.compiled = torch.compile(masked)

    def contenders(self) -> dict[str, Callable[[], Tensor]]:
        x, arguments = self.x, (self.mask, self.count, self.axes)
        found: dict[str, Callable[[], Tensor]] = {"eager": lambda: masked(x, *arguments)}
        if self.shape.over != "NT":
            layout, over = self.shape.layout, self.shape.over
            found["ours"] = lambda: spectrogram_norm(x, self.lengths, layout=layout, over=over)
            found["compiled"] = lambda: self.compiled(x, *arguments)
            return found
        ours = SequenceBatchNorm(x.shape[-1], affine=False)
        theirs = nn.BatchNorm1d(x.shape[-1], affine=False)

        def gather() -> Tensor:
            y = torch.zeros_like(x)
            return y.masked_scatter(self.valid[..., None], theirs(x[self.valid]))

        found["ours"] = lambda: ours(x, self.lengths)
        found["gather"] = gather
        return found

    def step(self, contender: Callable[[], Tensor]) -> None:
        self.x.grad = None
        contender().backward(self.grad)


def masked(x: Tensor, mask: Tensor, count: Tensor, axes: tuple[int, ...]) -> Tensor:
    """What is usually written: two passes for the statistics, masked."""
    mean = (x * mask).sum(axes, keepdim=True) / count
    deviation = (x - mean) * mask
    var = deviation.square().sum(axes, keepdim=True) / count
    return deviation * torch.rsqrt(var + EPS)


def measure(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """One row for each peer of a shape."""
    case = Case(shape)
    contenders = case.contenders()
    ours = contenders["ours"]().detach()
    for name, contender in contenders.items():
        torch.testing.assert_close(contender().detach(), ours, rtol=1e-3, atol=1e-3, msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            case.step(contender)
            start = time.process_time()
            case.step(contender)
            seconds[name].append(time.process_time() - start)
    targets = SEQUENCE_TARGETS if shape.over == "NT" else TARGETS
    median = {name: statistics.median(each) for name, each in seconds.items()}
    return [
        asdict(shape)
        | {
            "peer": peer,
            "rounds": rounds,
            "ours_s": median["ours"],
            "peer_s": median[peer],
            "ratio": median[peer] / median["ours"],
            "target": target,
        }
        for peer, target in targets.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| batch | peer | ours, ms | peer, ms | times as fast | to reach |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['name']} | {row['peer']} | {row['ours_s'] * 1e3:.1f} | {row['peer_s'] * 1e3:.1f} "
        f"| {row['ratio']:.1f} | {row['target']} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_spectrogram_norm")
    parser.add_argument("--out", type=Path, help="where to store the rows, as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-k", default="", metavar="TEXT", help="part of the names of rows")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [
        row for shape in SHAPES if parsed.k in shape.name for row in measure(shape, parsed.rounds)
    ]
    print(table(rows))
    if parsed.out:
        machine = {"cpu": describe_cpu(), "torch": torch.__version__}
        parsed.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
