"""What the arguments of spectrogram normalisation must be, and the canonical view of a batch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastctc._arguments import flag, real_number
from fastctc._checks import INTEGRAL
from fastctc._native import _C
from fastctc._norm import DTYPES, LOG1P, LOG10, NO_LOG, SHARE_ONE, MaskOptions

CANONICAL = "NTBEF"
LOGS = {None: NO_LOG, "log1p": LOG1P, "log10": LOG10}
Lengths = Tensor | Sequence[int] | None
# Of one kind. Each value is held against every one of them; SpecAugment draws up to 20.
MOST_MASKS = 64


class Layout(NamedTuple):
    """How the axes of a tensor map to the canonical ones."""

    letters: str
    order: tuple[int, ...]  # axes of the tensor in canonical order
    missing: tuple[int, ...]  # canonical axes that the tensor lacks
    back: tuple[int, ...]  # axes of the canonical view, without the missing ones, as the tensor's
    in_order: bool  # whether the tensor's axes are in canonical order


def parse_layout(layout: str) -> Layout:
    """Check a layout such as "NTF"."""
    letters = layout if isinstance(layout, str) else ""
    if "T" not in letters or len(set(letters)) != len(letters) or set(letters) - set(CANONICAL):
        raise ValueError(
            f"layout must name each axis of x by one of the letters N, T, B, E and F, T among "
            f"them, got {layout!r}"
        )
    order = tuple(letters.index(axis) for axis in CANONICAL if axis in letters)
    missing = tuple(i for i, axis in enumerate(CANONICAL) if axis not in letters)
    present = [axis for axis in CANONICAL if axis in letters]
    back = tuple(present.index(axis) for axis in letters)
    return Layout(letters, order, missing, back, list(order) == sorted(order))


def parse_over(over: str, layout: str) -> tuple[bool, bool]:
    """Whether statistics run over the batch, and over the bins."""
    letters = set(over) if isinstance(over, str) else set()
    if "T" not in letters or letters - set("NTF") or len(letters) != len(over):
        raise ValueError(
            f"over must be 'T' and, where statistics run over them too, 'N' and 'F', got {over!r}"
        )
    return "N" in letters, "F" in letters


def channel_letters(layout: str, over_freq: bool) -> str:
    """The axes that each have their own weight, in the layout's order."""
    return "".join(axis for axis in layout if axis in "BEF" and not (over_freq and axis == "F"))


def canonical(x: Tensor, layout: Layout) -> Tensor:
    """The view (N, T, B, E, F) of a tensor."""
    view = x if layout.in_order else x.permute(layout.order)
    sizes = list(view.shape)
    for axis in layout.missing:
        sizes.insert(axis, 1)
    return view.view(sizes)


def restored(y: Tensor, layout: Layout) -> Tensor:
    """The inverse of `canonical`."""
    dense = y.squeeze(layout.missing)
    return dense if layout.in_order else dense.permute(layout.back)


def check_input(x: Any, layout: Layout) -> None:
    """Raise for what is no spectrogram of that layout."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.is_nested:
        raise TypeError("x must be a dense tensor, got a nested tensor")
    if x.layout is not torch.strided:
        raise TypeError(f"x must be a dense tensor (layout torch.strided), got {x.layout}")
    if x.dim() != len(layout.letters):
        raise ValueError(
            f"x must have the {len(layout.letters)} axes of the layout {layout.letters!r}, got "
            f"{x.dim()}"
        )


def lengths_of(x: Tensor, lengths: Any) -> Tensor:
    """int64 (N,) on the device of the canonical `x`; all frames where there are none given."""
    batch, frames = x.shape[:2]
    if lengths is None:
        return torch.full((batch,), frames, dtype=torch.int64, device=x.device)
    if isinstance(lengths, int) and not isinstance(lengths, bool):
        lengths = [lengths]
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError) as wrong:
            raise TypeError(f"lengths must be a tensor or a list of ints: {wrong}") from None
        if lengths.numel() == 0:
            lengths = lengths.to(torch.int64)
    if lengths.dtype not in INTEGRAL:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.numel() != batch or lengths.dim() > 1:
        raise ValueError(
            f"lengths must hold one number for each of the {batch} utterances, got the shape "
            f"{tuple(lengths.shape)}"
        )
    lengths = lengths.detach().reshape(batch)
    # The kernels of the CPU look for themselves, once there are values.
    unseen = not torch.compiler.is_compiling() and (not x.is_cpu or _C is None or not x.numel())
    if lengths.is_cpu and unseen:
        for row, length in enumerate(lengths.tolist()):
            if not 0 <= length <= frames:
                raise ValueError(
                    f"lengths[{row}] is {length}: it must be from 0 to {frames}, the frames of x"
                )
    return lengths.to(device=x.device, dtype=torch.int64).contiguous()


def non_negative(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    number = real_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    return number


def whole(value: Any) -> int | None:
    """A whole number of any type but bool; None for anything else."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if integral else None


def log_code(log: Any) -> int:
    """The number of a logarithm."""
    if not isinstance(log, (str, NoneType)) or log not in LOGS:
        raise ValueError(f"log must be None, 'log1p' or 'log10', got {log!r}")
    return LOGS[log]


def mask_options(time_masks: Any, freq_masks: Any, per_channel: bool) -> MaskOptions | None:
    """What is drawn, or None where that is nothing."""
    frames = _counts("time_masks", time_masks, share=True)
    bins = _counts("freq_masks", freq_masks, share=False)
    each = flag("masks_per_channel", per_channel)
    if not frames[0] + bins[0]:
        return None
    largest = round(frames[2] * SHARE_ONE)
    return MaskOptions(frames[0], frames[1], largest, bins[0], bins[1], each)


def check_seed(seed: Any) -> None:
    """Raise for what is no seed of masks, drawn or not."""
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype is not torch.int64:
            raise ValueError(
                f"seed must be an int or one int64 in a tensor, got {seed.dtype} of the shape "
                f"{tuple(seed.shape)}"
            )
    elif seed is not None and whole(seed) is None:
        raise TypeError(f"seed must be an int or a tensor, got {type(seed).__name__}")


def _counts(name: str, value: Any, share: bool) -> tuple[int, int, float]:
    """(count, width, share of the length) of masks of one kind."""
    if value is None:
        return 0, 0, 1.0
    fields = "(count, width)" + (" or (count, width, share)" if share else "")
    if not isinstance(value, (tuple, list)) or len(value) not in ((2, 3) if share else (2,)):
        raise ValueError(f"{name} must be {fields}, got {value!r}")
    count, width = (whole(part) for part in value[:2])
    if count is None or width is None or not (0 <= count < 2**31 and 0 <= width < 2**31):
        raise ValueError(f"{name} must be {fields} of whole numbers from 0, got {value!r}")
    if count > MOST_MASKS:
        raise ValueError(f"{name} asks for {count} masks: there may be {MOST_MASKS} at most")
    part = non_negative(f"the share of {name}", value[2]) if len(value) == 3 else 1.0
    if part > 1:
        raise ValueError(f"the share of {name} must be at most 1, got {value[2]!r}")
    return count, width, part


def channel_parameter(
    name: str, values: Any, x: Tensor, layout: Layout, over_freq: bool
) -> Tensor | None:
    """A weight or bias as the kernels take it: (B, E, F') in float32, or float64 where x is."""
    if values is None:
        return None
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(values).__name__}")
    letters = channel_letters(layout.letters, over_freq)
    sizes = dict(zip(CANONICAL, x.shape, strict=True))
    if over_freq:
        sizes["F"] = 1
    shape = tuple(sizes[axis] for axis in letters)
    if tuple(values.shape) != shape:
        raise ValueError(
            f"{name} must have the shape {shape} of the axes {letters!r}, got {tuple(values.shape)}"
        )
    ordered = values.permute([letters.index(axis) for axis in "BEF" if axis in letters])
    kind = torch.float64 if x.dtype is torch.float64 else torch.float32
    view = ordered.reshape(sizes["B"], sizes["E"], sizes["F"])
    return view.to(device=x.device, dtype=kind).contiguous()
