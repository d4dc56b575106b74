"""What the operands of the registered operators must be, which anyone may call.

The public functions make what the kernels take, and reach them without this where nothing has to
see an operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastctc._norm import (
    DTYPES,
    LOG10,
    NO_LOG,
    SHARE_ONE,
    MaskOptions,
    NormOptions,
    statistics_shape,
)
from fastctc._norm_checks import MOST_MASKS, non_negative

_STATISTICS = ("mean", "var", "mean_sum", "mean_dot")
_PARAMETERS = ("weight", "bias")
_PAIRS = (("weight", "bias"), ("mean_sum", "mean_dot"))


def _check(
    name: str,
    values: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    dense: bool = True,
) -> None:
    if values.device != device:
        raise ValueError(f"{name} must be on {device}, got {values.device}")
    if values.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype}, got {values.dtype}")
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(values.shape)}")
    if dense and not values.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got the strides {values.stride()}")


def check_norm(given: dict[str, Any], options: NormOptions) -> None:
    """Raise for what the kernels would misread; `given` has the tensors and `time_masks` by name.

    Raises:
        TypeError: a dtype is not the one that x asks for.
        ValueError: a shape, a device, a layout or a number does not fit.
    """
    x = given["x"]
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() != 5:
        raise ValueError(f"x must be (N, T, B, E, F), got the shape {tuple(x.shape)}")
    if not NO_LOG <= options.log <= LOG10:
        raise ValueError(f"log must be from {NO_LOG} to {LOG10}, got {options.log}")
    non_negative("log_eps", options.log_eps)
    non_negative("eps", options.eps)
    shape, device = tuple(x.shape), x.device
    _check("lengths", given["lengths"], device, torch.int64, shape[:1])
    if "grad" in given:
        _check("grad", given["grad"], device, x.dtype, shape, dense=False)
    of_group = statistics_shape(shape, options)
    kind = torch.float64 if x.dtype is torch.float64 else torch.float32
    for names, dtype, wanted in (
        (_STATISTICS, torch.float64, of_group),
        (_PARAMETERS, kind, of_group[1:]),
    ):
        for name in names:
            if (values := given.get(name)) is not None:
                _check(name, values, device, dtype, wanted)
    for one, other in _PAIRS:
        if one in given and other in given and (given[one] is None) != (given[other] is None):
            raise ValueError(f"{one} and {other} must be given together")
    _check_masks(given.get("masks"), given.get("time_masks", 0), shape, device)


def _check_masks(
    masks: Tensor | None, time_masks: int, shape: tuple[int, ...], device: torch.device
) -> None:
    if masks is None:
        return
    if masks.dim() != 3:
        raise ValueError(f"masks must be (R, M, 2), got the shape {tuple(masks.shape)}")
    rows, count, _ = masks.shape
    n, _, b, e, _ = shape
    _check("masks", masks, device, torch.int32, (n if rows == n else n * b * e, count, 2))
    if not 0 <= time_masks <= count:
        raise ValueError(f"time_masks is {time_masks}: it must be from 0 to {count}, the masks")


def check_draw(seed: Tensor, lengths: Tensor, shape: list[int], options: MaskOptions) -> None:
    """Raise for masks that cannot be drawn; arguments as those of `_norm.Kernels.draw_masks`.

    Raises:
        TypeError: seed or lengths is not int64.
        ValueError: a shape, a device or a number does not fit.
    """
    if len(shape) != 5 or min(shape) < 0:
        raise ValueError(f"shape must be (N, T, B, E, F), got {tuple(shape)}")
    _check("lengths", lengths, lengths.device, torch.int64, (shape[0],))
    _check("seed", seed, lengths.device, torch.int64, tuple(seed.shape))
    if seed.numel() != 1:
        raise ValueError(f"seed must have one element, got the shape {tuple(seed.shape)}")
    most = {
        "time_count": MOST_MASKS,
        "time_width": 2**31 - 1,
        "time_share": SHARE_ONE,
        "freq_count": MOST_MASKS,
        "freq_width": 2**31 - 1,
    }
    for name, limit in most.items():
        value = getattr(options, name)
        if not 0 <= value <= limit:
            raise ValueError(f"{name} is {value}: it must be from 0 to {limit}")
