"""The workloads that the benchmarks run: shapes, lengths and reproducible inputs."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import torch

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Shape:
    """A batch: ``frames`` T, ``batch`` N, ``classes`` C and ``labels`` S per utterance."""

    name: str
    frames: int
    batch: int
    classes: int
    labels: int
    origin: str

    @property
    def gradient_bytes(self) -> int:
        """Size of a float32 gradient of this shape."""
        return self.frames * self.batch * self.classes * 4

    def __str__(self) -> str:
        return f"T={self.frames} N={self.batch} C={self.classes} S={self.labels}"


WORKLOADS = {
    shape.name: shape
    for shape in (
        Shape("A", 150, 32, 28, 40, "English characters, the size of warp-ctc's table"),
        Shape("B", 700, 16, 29, 200, "DeepSpeech2, characters"),
        Shape("C", 500, 16, 5000, 100, "speech with a large subword vocabulary"),
        Shape("D", 2000, 4, 32, 400, "long-form speech"),
        Shape("E", 50, 256, 80, 10, "optical character recognition, short lines"),
        Shape("F", 183, 90, 10241, 29, "speech with a very large subword vocabulary"),
        Shape("G", 1024, 32, 128, 100, "a mid-sized alphabet with many frames"),
    )
}

# The same letters in sizes that finish at once, for trying the harness rather than for figures.
QUICK_WORKLOADS = {
    shape.name: shape
    for shape in (
        Shape("A", 12, 4, 7, 4, "small alphabet"),
        Shape("B", 30, 2, 9, 12, "long target"),
        Shape("C", 15, 2, 200, 5, "large alphabet"),
        Shape("D", 60, 1, 8, 20, "long input"),
        Shape("E", 8, 16, 10, 2, "short input"),
        Shape("F", 9, 3, 300, 3, "larger alphabet"),
        Shape("G", 40, 3, 20, 6, "mid-sized alphabet"),
    )
}

# One utterance of five frames: what is left is the fixed cost of a call.
FIXED_COST = Shape("fixed", 5, 1, 5, 2, "fixed cost of a call")


@dataclass(frozen=True, eq=False)
class Case:
    """A workload's tensors.

    ``logits`` is a leaf (T, N, C) that requires a gradient; ``targets`` is int64 (N, S) without
    blanks (class 0); both length tensors are int64 (N,).
    """

    shape: Shape
    logits: torch.Tensor
    targets: torch.Tensor
    input_lengths: torch.Tensor
    target_lengths: torch.Tensor


def _lengths(generator: torch.Generator, size: int, longest: int, ragged: bool) -> torch.Tensor:
    if not ragged:
        return torch.full((size,), longest, dtype=torch.int64)
    shortest = (longest + 1) // 2
    return torch.randint(shortest, longest + 1, (size,), generator=generator)


def _frames_needed(targets: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Fewest frames that each row's target fits in: a repeat needs a blank in between."""
    repeats = targets[:, 1:] == targets[:, :-1]
    inside = torch.arange(1, targets.shape[1]) < lengths[:, None]
    return lengths + (repeats & inside).sum(1)


@functools.lru_cache(maxsize=1)
def make_case(shape: Shape, lengths: str = "full", dtype: str = "float32") -> Case:
    """Inputs of ``shape``, the same at every call.

    ``lengths`` is "full", or "ragged": input lengths uniform in [T/2, T] and target lengths
    uniform in [S/2, S]. Every row has an alignment. Only the latest case is kept, because the
    largest takes several hundred MiB.
    """
    if lengths not in ("full", "ragged"):
        raise ValueError(f"lengths must be 'full' or 'ragged', got {lengths!r}")
    generator = torch.Generator().manual_seed(zlib.crc32(f"{shape.name}-{lengths}".encode()))
    ragged = lengths == "ragged"
    logits = torch.randn(shape.frames, shape.batch, shape.classes, generator=generator)
    targets = torch.randint(1, shape.classes, (shape.batch, shape.labels), generator=generator)
    input_lengths = _lengths(generator, shape.batch, shape.frames, ragged)
    target_lengths = _lengths(generator, shape.batch, shape.labels, ragged)
    input_lengths = torch.maximum(input_lengths, _frames_needed(targets, target_lengths))
    if int(input_lengths.max()) > shape.frames:
        raise ValueError(f"{shape}: a target needs more frames than there are")
    return Case(
        shape,
        logits.to(DTYPES[dtype]).requires_grad_(True),
        targets,
        input_lengths,
        target_lengths,
    )
