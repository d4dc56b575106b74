"""The compiled module's calls over raw addresses, served in numpy.

The caller of the compiled kernel hands over addresses, so that neither side knows the other's
arrays. Serving the same call here keeps the rest of the package free of a second path.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastctc.reference import _align, _numpy

BFLOAT16 = 1
STORAGE: tuple[type[np.generic], ...] = (np.float16, np.uint16, np.float32, np.float64)
FLOAT64 = 3


def view(
    address: int, dtype: type[np.generic], shape: tuple[int, ...], strides: tuple[int, ...]
) -> NDArray[Any]:
    """The memory at `address` as an array; strides are in elements."""
    if 0 in shape:
        return np.empty(shape, dtype)
    itemsize = np.dtype(dtype).itemsize
    extent = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (extent * itemsize)).from_address(address)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(memoryview(memory), dtype), shape, [stride * itemsize for stride in strides]
    )


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def narrow_bfloat16(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; NaN stays NaN."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def label_view(
    targets: int, targets_numel: int, targets_stride: int, count: int
) -> NDArray[np.int64]:
    """The labels, padded or concatenated."""
    if targets_stride:
        return view(targets, np.int64, (count, targets_numel), (targets_stride, 1))
    return view(targets, np.int64, (targets_numel,), (1,))


def score_values(
    scores: int, dtype: int, shape: tuple[int, int, int], strides: tuple[int, int, int]
) -> NDArray[np.float64]:
    """The scores in float64."""
    stored = view(scores, STORAGE[dtype], shape, strides)
    return widen_bfloat16(stored) if dtype == BFLOAT16 else stored.astype(np.float64)


def ctc_loss_cpu(
    scores: int,
    dtype: int,
    T: int,
    N: int,
    C: int,
    scores_stride_t: int,
    scores_stride_n: int,
    targets: int,
    targets_numel: int,
    targets_stride: int,
    input_lengths: int,
    target_lengths: int,
    blank: int,
    from_logits: bool,
    zero_infinity: bool,
    true_grad: bool,
    reduction: int,
    grad_out: int,
    loss: int,
    grad: int,
    grad_stride_t: int,
    grad_stride_n: int,
    num_threads: int,
) -> tuple[int, int, int, int] | None:
    """Write the loss and the gradient wanted, or return the status of the first bad value."""
    del num_threads  # one thread reads best
    storage = STORAGE[dtype]
    frame_counts = view(input_lengths, np.int64, (N,), (1,))
    label_counts = view(target_lengths, np.int64, (N,), (1,))
    labels = label_view(targets, targets_numel, targets_stride, N)
    status = _numpy.find_error(T, C, labels, frame_counts, label_counts)
    if status is not None:
        return status

    values = score_values(scores, dtype, (T, N, C), (scores_stride_t, scores_stride_n, 1))
    result_type = np.float64 if dtype == FLOAT64 else np.float32
    result_shape = (N,) if reduction == _numpy.NONE else ()
    upstream = None
    if grad_out:
        upstream = view(grad_out, result_type, result_shape, (1,) * len(result_shape))
    losses, gradient = _numpy.batch(
        values,
        labels,
        frame_counts,
        label_counts,
        blank,
        reduction,
        bool(from_logits),
        bool(zero_infinity),
        bool(true_grad),
        upstream,
        want_grad=bool(grad),
    )
    with np.errstate(over="ignore"):
        if loss:
            view(loss, result_type, result_shape, (1,) * len(result_shape))[...] = losses
        if grad:
            narrowed = narrow_bfloat16(gradient) if dtype == BFLOAT16 else gradient
            view(grad, storage, (T, N, C), (grad_stride_t, grad_stride_n, 1))[...] = narrowed
    return None


def forced_align_cpu(
    scores: int,
    dtype: int,
    T: int,
    N: int,
    C: int,
    scores_stride_t: int,
    scores_stride_n: int,
    targets: int,
    targets_numel: int,
    targets_stride: int,
    input_lengths: int,
    target_lengths: int,
    blank: int,
    from_logits: bool,
    paths: int,
    path_scores: int,
    row_faults: int,
    num_threads: int,
) -> tuple[int, int, int, int] | None:
    """Write paths, their scores and faults, or return the status of the first bad value."""
    del num_threads
    frame_counts = view(input_lengths, np.int64, (N,), (1,))
    label_counts = view(target_lengths, np.int64, (N,), (1,))
    labels = label_view(targets, targets_numel, targets_stride, N)
    status = _numpy.find_error(T, C, labels, frame_counts, label_counts)
    if status is None:
        status = _numpy.find_blank(labels, label_counts, blank)
    if status is not None:
        return status
    values = score_values(scores, dtype, (T, N, C), (scores_stride_t, scores_stride_n, 1))
    rows = _numpy.split_targets(labels, label_counts)
    best, chosen, faults = _align.batch(values, rows, frame_counts, blank, bool(from_logits))
    result_type = np.float64 if dtype == FLOAT64 else np.float32
    view(paths, np.int64, (N, T), (T, 1))[...] = best
    view(path_scores, result_type, (N, T), (T, 1))[...] = chosen
    view(row_faults, np.int32, (N,), (1,))[...] = faults
    return None
