"""Spectrogram normalisation on a GPU: the launches of `_kernels.py`.

The functions are those of `fastctc._norm.Kernels`. They wait for nothing, allocate through torch,
read no value on the host, and launch on the current stream, so a CUDA graph can record them.

A forward pass is three launches: moments of tiles, which read x once; their merging, on a hundredth
of the bytes; and the normalised values, which read x again and write y. A backward pass is the same
with the gradient beside x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastctc._norm import MaskOptions, NormOptions, mask_rows, statistics_shape
from fastctc.triton import why_missing

if why_missing():
    raise ImportError(why_missing())

from fastctc.triton import _kernels

_VALUES = 4096  # of a tile
_COLUMNS = 32  # of a tile: a cache line of float32
# A thread's share of a tile: with more, registers would leave room for few programs at a time.
_VALUES_OF_THREAD = 16
_GRADIENTS_OF_THREAD = 8
# The assembler spills a register or two where that makes room for one more program; in these
# kernels it does not when it is told how many there may be. 255 is what a thread can have at most.
_MOMENTS_REGISTERS = 64  # for values of 16 bits
_NORMALISE_REGISTERS = 128
_MERGE_REGISTERS = 255
_MOST_FRAMES = 1024
_MERGED_AT_ONCE = 2048
_MOST = 2**31 - 1


class Tiling(NamedTuple):
    """How much one program takes on."""

    frames: int
    columns: int

    def warps(self, values_of_thread: int) -> int:
        """Warps of a program whose threads take so many values each."""
        return max(self.frames * self.columns // (32 * values_of_thread), 1)


def _power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def tiling(frames: int, columns: int, itemsize: int) -> Tiling:
    """Tile of a batch: up to a cache line of columns, and frames to fill it up."""
    most = _COLUMNS * 4 // max(itemsize, 4)
    wide = min(_power(columns), most)
    tall = min(_power(frames), _VALUES // _COLUMNS * most // wide, _MOST_FRAMES)
    return Tiling(tall, wide)


class Layout(NamedTuple):
    """How the kernels find a value of a tensor of canonical shape."""

    strides: tuple[int, ...]  # of n, t, b, e, f
    flat: bool  # that of f leads from any column to the next
    reach: int  # the largest offset within a frame


def layout_of(x: Tensor) -> Layout:
    """The layout of a tensor."""
    shape, strides = x.shape, x.stride()
    step, expected, flat = 1, None, True
    for size, stride in zip(shape[:1:-1], strides[:1:-1], strict=True):
        if size == 1:
            continue
        if expected is None:
            step = stride
        elif stride != expected:
            flat = False
        expected = stride * size
    reach = sum(
        (size - 1) * abs(stride) for size, stride in zip(shape[2:], strides[2:], strict=True)
    )
    if flat:
        strides = (*strides[:2], 0, 0, step)
    return Layout(tuple(strides), flat, reach)


def launch(kernel: Any, grid: tuple[int], device: torch.device, **arguments: Any) -> None:
    """Launch on the tensors' device, whichever is the current one."""
    # Named, because the default for it changes between versions of triton.
    arguments["enable_fp_fusion"] = True
    if device.type != "cuda":  # the interpreter's
        kernel[grid](**arguments)
        return
    with torch.cuda.device(device):
        kernel[grid](**arguments)


class _Problem:
    """Sizes of a batch, and the launches over its tiles."""

    def __init__(self, x: Tensor, options: NormOptions) -> None:
        n, t, b, e, f = x.shape
        self.shape = (n, t, b, e, f)
        self.columns = b * e * f
        self.width = f if options.over_freq else 1
        self.statistics = statistics_shape(self.shape, options)
        self.options = options
        self.device = x.device
        self.tile = tiling(t, self.columns, x.element_size())
        self.chunks = -(-t // self.tile.frames)
        self.rows = n * self.chunks
        self.empty = x.numel() == 0
        # Half a tile each for what reports nothing.
        self.half = self.tile._replace(frames=max(self.tile.frames // 2, 1))
        if max(t, self.columns, self.programs(self.half)) > _MOST:
            raise ValueError(
                f"a spectrogram of {n} x {t} frames of {self.columns} values each makes "
                f"{self.programs(self.half)} programs on the GPU; {_MOST} of each are possible"
            )
        self.arithmetic = torch.float64 if x.dtype is torch.float64 else torch.float32

    def programs(self, tile: Tiling) -> int:
        """How many programs it takes to visit each tile."""
        return self.shape[0] * -(-self.shape[1] // tile.frames) * -(-self.columns // tile.columns)

    def new_statistics(self) -> Tensor:
        """Statistics, or sums, still to be written: 0 where no kernel will."""
        make = torch.zeros if self.empty else torch.empty
        return make(self.statistics, dtype=torch.float64, device=self.device)

    def new_tiles(self, planes: int) -> Tensor:
        """Room for what each tile reports on each of its columns."""
        size = planes * self.rows * self.columns
        return torch.empty(size, dtype=self.arithmetic, device=self.device)

    def walk(
        self,
        kernel: Any,
        tensors: dict[str, Tensor],
        tile: Tiling,
        values_of_thread: int = _VALUES_OF_THREAD,
        registers: int | None = None,
        **arguments: Any,
    ) -> None:
        """Launch a kernel over the tiles.

        Args:
            kernel: what is launched.
            tensors: the tensors of canonical shape, by the first letter of their strides' names.
            tile: what a program takes on.
            values_of_thread: and a thread of it.
            registers: a bound on those of a thread, where the arithmetic is float32.
            arguments: what else the kernel takes, by name.
        """
        farthest = 0
        for letter, tensor in tensors.items():
            layout = layout_of(tensor)
            names = (letter + axis for axis in "ntbef")
            arguments.update(zip(names, layout.strides, strict=True))
            arguments[letter.upper() + "_FLAT"] = layout.flat
            if letter != "x":
                arguments[letter.upper() + "_LIKE_X"] = layout == layout_of(tensors["x"])
            reach = layout.reach + (tile.frames - 1) * abs(layout.strides[1])
            farthest = max(farthest, reach)
        if registers is not None and self.arithmetic is torch.float32:
            arguments["maxnreg"] = registers
        _, t, _, e, f = self.shape
        launch(
            kernel,
            (self.programs(tile),),
            self.device,
            T=t,
            J=self.columns,
            E=e,
            F=f,
            LOG=self.options.log,
            LOG_EPS=self.options.log_eps,
            WIDE=farthest > _MOST,
            BT=tile.frames,
            BJ=tile.columns,
            num_warps=tile.warps(values_of_thread),
            **arguments,
        )

    def merge(self, kernel: Any, tiles: Tensor, lengths: Tensor, **results: Tensor) -> None:
        """Launch a kernel that merges what the tiles reported."""
        batch = self.options.over_batch
        groups = self.columns // self.width
        reports = (self.rows if batch else self.chunks) * self.width
        # Neighbouring threads read neighbouring reports: those on one statistic where it covers
        # bins, else those on the next.
        groups_at_once = 1 if self.width > 1 else min(_power(groups), 8 if batch else 32)
        launch(
            kernel,
            (self.statistics[0] * -(-groups // groups_at_once),),
            self.device,
            tiles=tiles,
            lengths=lengths,
            T=self.shape[1],
            J=self.columns,
            W=self.width,
            rows=self.rows,
            chunks=self.chunks,
            PER_UTTERANCE=not batch,
            BT=self.tile.frames,
            BQ=min(_power(reports), _MERGED_AT_ONCE // groups_at_once),
            BG=groups_at_once,
            num_warps=4,
            maxnreg=_MERGE_REGISTERS,
            **results,
        )

    def statistics_arguments(self, mean: Tensor, var: Tensor) -> dict[str, Any]:
        """The statistics, and how to find that of a value."""
        return {
            "mean": mean,
            "var": var,
            "W": self.width,
            "PER_UTTERANCE": not self.options.over_batch,
            "EPS": self.options.eps,
        }

    def mask_arguments(self, masks: Tensor | None, time_masks: int) -> dict[str, Any]:
        """The masks, how many there are, and to whom a row of them belongs."""
        count = 0 if masks is None else masks.shape[1]
        return {
            "masks": masks,
            "MASKS": count,
            "TIME_MASKS": time_masks,
            "PER_CHANNEL": masks is not None and masks.shape[0] != self.shape[0],
        }


def draw_masks(
    seed: Tensor, lengths: Tensor, shape: tuple[int, ...], options: MaskOptions
) -> Tensor:
    """Intervals (R, M, 2), int32."""
    rows = mask_rows(shape, options)
    count = options.time_count + options.freq_count
    masks = torch.empty((rows, count, 2), dtype=torch.int32, device=lengths.device)
    if masks.numel() == 0:
        return masks
    block = 128
    launch(
        _kernels.draw_masks_kernel,
        (-(-rows * count // block),),
        lengths.device,
        seed=seed,
        lengths=lengths,
        masks=masks,
        T=shape[1],
        F=shape[4],
        channels=rows // shape[0],
        rows=rows,
        MASKS=count,
        TIME_MASKS=options.time_count,
        TIME_WIDTH=options.time_width,
        TIME_SHARE=options.time_share,
        FREQ_WIDTH=options.freq_width,
        BLOCK=block,
        num_warps=4,
    )
    return masks


def moments(x: Tensor, lengths: Tensor, options: NormOptions) -> tuple[Tensor, Tensor]:
    """Mean and variance of v."""
    problem = _Problem(x, options)
    mean, var = problem.new_statistics(), problem.new_statistics()
    if not problem.empty:
        tiles = problem.new_tiles(3)
        problem.walk(
            _kernels.tile_moments_kernel,
            {"x": x},
            problem.tile,
            registers=_MOMENTS_REGISTERS if x.element_size() == 2 else None,
            x=x,
            lengths=lengths,
            tiles=tiles,
            rows=problem.rows,
        )
        problem.merge(_kernels.merge_moments_kernel, tiles, lengths, mean=mean, var=var)
    return mean, var


def normalise(
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> Tensor:
    """y from given statistics."""
    problem = _Problem(x, options)
    y = torch.empty_like(x)
    if not problem.empty:
        problem.walk(
            _kernels.normalise_kernel,
            {"x": x, "y": y},
            problem.half,
            registers=_NORMALISE_REGISTERS,
            x=x,
            lengths=lengths,
            weight=weight,
            bias=bias,
            y=y,
            AFFINE=weight is not None,
            **problem.statistics_arguments(mean, var),
            **problem.mask_arguments(masks, time_masks),
        )
    return y


def forward(
    x: Tensor,
    lengths: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and var."""
    mean, var = moments(x, lengths, options)
    y = normalise(x, lengths, mean, var, weight, bias, masks, time_masks, options)
    return y, mean, var


def _sums(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_sum and grad_dot, and both divided by the number of values."""
    problem = _Problem(x, options)
    sums, dots, mean_sums, mean_dots = (problem.new_statistics() for _ in range(4))
    if not problem.empty:
        tiles = problem.new_tiles(2)
        problem.walk(
            _kernels.tile_sums_kernel,
            {"g": grad, "x": x},
            problem.tile,
            grad=grad,
            x=x,
            lengths=lengths,
            tiles=tiles,
            rows=problem.rows,
            **problem.statistics_arguments(mean, var),
            **problem.mask_arguments(masks, time_masks),
        )
        problem.merge(
            _kernels.merge_sums_kernel,
            tiles,
            lengths,
            sums=sums,
            dots=dots,
            mean_sums=mean_sums,
            mean_dots=mean_dots,
        )
    return sums, dots, mean_sums, mean_dots


def gradient_sums(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor]:
    """grad_sum and grad_dot."""
    sums, dots, _, _ = _sums(grad, x, lengths, mean, var, masks, time_masks, options)
    return sums, dots


def input_gradient(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    mean_sum: Tensor | None,
    mean_dot: Tensor | None,
    options: NormOptions,
) -> Tensor:
    """The gradient of x."""
    problem = _Problem(x, options)
    dx = torch.empty_like(x)
    if not problem.empty:
        problem.walk(
            _kernels.input_gradient_kernel,
            {"g": grad, "x": x, "d": dx},
            problem.half,
            _GRADIENTS_OF_THREAD,
            grad=grad,
            x=x,
            lengths=lengths,
            weight=weight,
            mean_sums=mean_sum,
            mean_dots=mean_dot,
            dx=dx,
            AFFINE=weight is not None,
            OWN=mean_sum is not None,
            **problem.statistics_arguments(mean, var),
            **problem.mask_arguments(masks, time_masks),
        )
    return dx


def backward(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, grad_sum and grad_dot."""
    sums, dots, mean_sums, mean_dots = _sums(
        grad, x, lengths, mean, var, masks, time_masks, options
    )
    dx = input_gradient(
        grad, x, lengths, mean, var, weight, masks, time_masks, mean_sums, mean_dots, options
    )
    return dx, sums, dots
