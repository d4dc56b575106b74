"""Forced alignment below its public face: checks, the kernel's call, the registered operator."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastctc import _checks, _cpu, config
from fastctc._arguments import flag, whole_number, whole_number_in
from fastctc._backends import BACKENDS
from fastctc._cuda import Cuda
from fastctc._dispatch import wants_dispatcher
from fastctc._native import _C
from fastctc.loss import unserved_transform

Status = tuple[int, int, int, int]


class AlignOptions(NamedTuple):
    """The scalar arguments of forced alignment, checked."""

    blank: int
    from_logits: bool
    batch_first: bool
    mark: bool


torch.library.define(
    "fastctc::forced_align",
    "(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, "
    "int blank, bool from_logits, bool batch_first, bool mark) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def check_options(
    blank: Any, from_logits: Any, batch_first: Any, on_impossible: Any
) -> AlignOptions:
    """Check the scalar arguments, except for what depends on the tensors."""
    from_logits = flag("from_logits", from_logits)
    batch_first = flag("batch_first", batch_first)
    if on_impossible not in ("raise", "mark"):
        raise ValueError(f"on_impossible must be 'raise' or 'mark', got {on_impossible!r}")
    if type(blank) is not int:
        blank = whole_number("blank", blank)
    return AlignOptions(blank, from_logits, batch_first, on_impossible == "mark")


def check_tensors(
    log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, options: AlignOptions
) -> tuple[Tensor, Tensor]:
    """Check types and shapes; returns both lengths as tensors."""
    for name, value in (("log_probs", log_probs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
        _checks.check_dense(name, value)
    if log_probs.dim() not in (2, 3):
        raise ValueError(f"log_probs must be 2-D or 3-D, got a shape of {tuple(log_probs.shape)}")
    if 0 in log_probs.shape:
        raise ValueError(f"log_probs must not be empty, got a shape of {tuple(log_probs.shape)}")
    if log_probs.dtype not in _checks.DTYPE_CODES:
        raise NotImplementedError(
            "log_probs must be float64, float32, float16 or bfloat16, got "
            f"{str(log_probs.dtype).removeprefix('torch.')}"
        )
    if targets.dtype not in _checks.INTEGRAL:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if targets.dim() not in (1, 2):
        raise ValueError(f"targets must be 1-D or 2-D, got a shape of {tuple(targets.shape)}")
    batch, frames = _rows_and_frames(log_probs, options)
    if targets.dim() == 2 and targets.shape[0] != batch:
        raise ValueError(
            f"targets must have a row for each of {batch} utterances, got {targets.shape[0]}"
        )
    if not 0 <= options.blank < log_probs.shape[-1]:
        raise ValueError(
            f"blank is {options.blank}, which must be at least 0 and below the "
            f"{log_probs.shape[-1]} classes"
        )
    if target_lengths is None and targets.dim() == 1 and batch != 1:
        raise ValueError("target_lengths must be given where targets are concatenated (1-D)")
    return (
        _lengths("input_lengths", input_lengths, batch, frames),
        _lengths("target_lengths", target_lengths, batch, targets.shape[-1]),
    )


def _rows_and_frames(log_probs: Tensor, options: AlignOptions) -> tuple[int, int]:
    if log_probs.dim() == 2:
        return 1, log_probs.shape[0]
    first, second = log_probs.shape[:2]
    return (first, second) if options.batch_first else (second, first)


def _lengths(name: str, lengths: Any, batch: int, longest: int) -> Tensor:
    """Lengths as a tensor, `longest` for all where there are none."""
    if lengths is None:
        return torch.full((batch,), longest, dtype=torch.int64, device="cpu")
    if isinstance(lengths, (list, tuple)):
        ints = [
            whole_number_in(f"{name}[{row}]", length, -(2**63), 2**63 - 1)
            for row, length in enumerate(lengths)
        ]
        lengths = torch.tensor(ints, dtype=torch.int64, device="cpu")
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name} must be a Tensor, list or tuple, got {type(lengths).__name__}")
    if lengths.dtype not in _checks.INTEGRAL:
        raise TypeError(f"{name} must be integers, got {lengths.dtype}")
    if lengths.numel() != batch:
        raise ValueError(
            f"{name} must have one length for each of {batch} utterances, got {lengths.numel()}"
        )
    return lengths


def loss_options(options: AlignOptions) -> _checks.Options:
    """The options of a loss whose arguments are laid out in the same way."""
    return _checks.Options(
        options.blank, _checks.NONE, False, options.from_logits, options.batch_first, False
    )


def path_dtype(targets: Tensor) -> torch.dtype:
    """int32 targets have int32 paths, as in torchaudio; all others int64."""
    return torch.int32 if targets.dtype is torch.int32 else torch.int64


@functools.cache
def _kernel() -> Callable[..., Status | None]:
    """The compiled call, or the reference in its place, with a word on why that is slow."""
    if _C is not None:
        _ = config.max_workspace_mb  # read from the environment, it is passed on to the kernels
        kernel: Callable[..., Status | None] = _C.forced_align_cpu
        return kernel
    warnings.warn(_cpu.ON_REFERENCE, RuntimeWarning, stacklevel=5)
    from fastctc import reference

    return reference.forced_align_cpu


def _align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    chosen = AlignOptions(*options)
    backend = BACKENDS.get(log_probs.device.type)
    if backend is None:
        raise NotImplementedError(
            f"fastctc.forced_align serves tensors on {' and '.join(BACKENDS)}, and log_probs is on "
            f"{log_probs.device}"
        )
    if isinstance(backend, Cuda):
        _check_what_the_host_sees(
            backend, log_probs, targets, input_lengths, target_lengths, chosen
        )
    problem = backend.prepare(
        log_probs, targets, input_lengths, target_lengths, loss_options(chosen)
    )
    paths, scores, faults = (
        _run_on_cuda(backend, problem) if isinstance(backend, Cuda) else _run_on_cpu(problem)
    )
    if not chosen.mark:
        raise_faults(faults)
    elif config.validate_device_inputs:
        raise_faults(faults.where(faults == BAD_INPUT, 0))
    if paths.dtype is not path_dtype(targets):
        paths = paths.to(path_dtype(targets))
    if log_probs.dim() == 2:
        return paths[0], scores[0]
    return paths, scores


def _run_on_cpu(problem: _checks.Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Paths, scores and faults, on the host."""
    _, _, frames, batch = problem.arguments[:4]
    paths = torch.empty((batch, frames), dtype=torch.int64, device="cpu")
    scores = torch.empty(
        (batch, frames), dtype=_checks.loss_dtype(problem.scores.dtype), device="cpu"
    )
    faults = torch.empty(batch, dtype=torch.int32, device="cpu")
    status = _kernel()(
        *problem.arguments[:14],
        paths.data_ptr(),
        scores.data_ptr(),
        faults.data_ptr(),
        torch.get_num_threads(),
    )
    if status is not None:
        raise_status(
            status, problem.scores, problem.targets, problem.target_lengths, problem.arguments[2]
        )
    return paths, scores, faults


def _run_on_cuda(backend: Cuda, problem: _checks.Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Paths, scores and faults, on the device, which is not waited for."""
    assert problem.bounds is not None
    scores, longest = problem.scores, problem.bounds.max_labels
    _, dtype, frames, batch, classes = problem.arguments[:5]
    from_logits = problem.options.from_logits
    scratch_bytes = backend.library.forced_align_cuda_scratch(
        dtype, frames, batch, classes, longest, from_logits
    )
    scratch = backend.empty(scores, (scratch_bytes,), torch.uint8)
    paths = backend.empty(scores, (batch, frames), torch.int64)
    path_scores = backend.empty(scores, (batch, frames), _checks.loss_dtype(scores.dtype))
    faults = backend.empty(scores, (batch,), torch.int32)
    backend.call(
        "forced_align_cuda",
        *backend.device_and_stream(scores),
        *problem.arguments[:14],
        longest,
        scratch.data_ptr(),
        paths.data_ptr(),
        path_scores.data_ptr(),
        faults.data_ptr(),
    )
    return paths, path_scores, faults


def _check_what_the_host_sees(
    backend: Cuda,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    options: AlignOptions,
) -> None:
    """Raise for lengths and labels on the host, as the CPU does; the kernel sees all others."""
    batch, frames = _rows_and_frames(log_probs, options)
    names = ("targets", "input_lengths", "target_lengths")
    seen = [
        _checks.host_integers(name, values) if backend.sees(values) else None
        for name, values in zip(names, (targets, input_lengths, target_lengths), strict=True)
    ]
    labels_at, frames_at, counts_at = (0 if each is None else each.data_ptr() for each in seen)
    width = targets.shape[-1]
    stride = max(width, 1) if targets.dim() == 2 else 0
    status = backend.library.ctc_loss_check(
        frames, batch, log_probs.shape[-1], labels_at, width, stride, frames_at, counts_at
    )
    if status is not None:
        raise_status(status, log_probs, targets, target_lengths, frames)


def raise_status(
    status: Status, log_probs: Tensor, targets: Tensor, target_lengths: Tensor, frames: int
) -> None:
    """Raise for a length or label that was found out of range on the host."""
    code, row, value, position = status
    width, classes = targets.shape[-1], log_probs.shape[-1]
    if code == 5 and int(target_lengths.min()) < 0:  # the reason why the sum is off
        code, row, value = 3, int(target_lengths.argmin()), int(target_lengths.min())
    where = f"targets: label {value} at position {position} of row {row}"
    sentences = {
        1: f"input_lengths[{row}] is {value}, above the {frames} frames of log_probs",
        2: f"input_lengths[{row}] is {value}, below 0",
        3: f"target_lengths[{row}] is {value}, below 0",
        4: f"target_lengths[{row}] is {value}, above the {width} labels that a row of targets has",
        5: f"target_lengths add up to {sum(target_lengths.tolist())}, and targets has {width} "
        "labels",
        6: f"{where} is no class: it must be at least 0 and below {classes}",
        7: f"{where} is the blank, which cannot be aligned",
    }
    raise ValueError(sentences[code])


BAD_INPUT = 3
REASONS = {
    1: "has no path: too few frames for its labels, or none with a score above -inf",
    2: "has NaN or +inf among its scores, and so no best path",
    BAD_INPUT: "has a length or a label that is out of range, or a label that is the blank",
}


def raise_faults(faults: Tensor) -> None:
    """Raise for the first row that has no path."""
    found = {row: fault for row, fault in enumerate(faults.tolist()) if fault}
    if not found:
        return
    row, fault = next(iter(found.items()))
    others = f" (and {len(found) - 1} other rows are at fault)" if len(found) > 1 else ""
    raise ValueError(f"row {row} {REASONS[fault]}{others}; on_impossible='mark' goes on without it")


torch.library.impl("fastctc::forced_align", ("CPU", "CUDA"))(_align)


@torch.library.register_fake("fastctc::forced_align")
def _align_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    batch, frames = _rows_and_frames(log_probs, AlignOptions(*options))
    shape = (frames,) if log_probs.dim() == 2 else (batch, frames)
    return (
        log_probs.new_empty(shape, dtype=path_dtype(targets)),
        log_probs.new_empty(shape, dtype=_checks.loss_dtype(log_probs.dtype)),
    )


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    options: AlignOptions,
) -> tuple[Tensor, Tensor]:
    """Paths and scores of checked arguments."""
    if wants_dispatcher(log_probs):
        result: tuple[Tensor, Tensor] = torch.ops.fastctc.forced_align(
            log_probs, targets, input_lengths, target_lengths, *options
        )
        return result
    transform = unserved_transform(log_probs)
    if transform is not None:
        raise NotImplementedError(f"fastctc.forced_align does not support {transform}")
    return _align(log_probs, targets, input_lengths, target_lengths, *options)
