"""Batches of utterances over numpy arrays: argument checks, layouts, reductions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastctc.reference import _align, _lattice

MEAN = 1
NONE = 0

Status = tuple[int, int, int, int]

SENTENCES = {
    1: "input_lengths[{row}] is {value}, more than the number of frames",
    2: "input_lengths[{row}] is {value}, less than 0",
    3: "target_lengths[{row}] is {value}, less than 0",
    4: "target_lengths[{row}] is {value}, more than the width of targets",
    5: "target_lengths add up to {value}, which is not the number of labels in targets",
    6: "targets: label {value} at position {extra} of row {row} is not a class",
    7: "targets: label {value} at position {extra} of row {row} is the blank",
}


def find_error(
    frames: int,
    classes: int,
    targets: NDArray[np.int64],
    input_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
) -> Status | None:
    """The first length or label that is out of range, as (code, row, value, extra)."""
    width = targets.shape[-1]
    for row, length in enumerate(input_lengths.tolist()):
        if length > frames:
            return 1, row, length, 0
        if length < 0:
            return 2, row, length, 0
    for row, length in enumerate(target_lengths.tolist()):
        if length < 0:
            return 3, row, length, 0
        if targets.ndim == 2 and length > width:
            return 4, row, length, 0
    total = sum(target_lengths.tolist())
    if targets.ndim == 1 and total != width:
        return 5, -1, total, 0
    for row, labels in enumerate(split_targets(targets, target_lengths)):
        outside = np.flatnonzero((labels < 0) | (labels >= classes))
        if outside.size:
            return 6, row, int(labels[outside[0]]), int(outside[0])
    return None


def split_targets(
    targets: NDArray[np.int64], target_lengths: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The labels of each row, from either layout."""
    if targets.ndim == 2:
        return [row[:length] for row, length in zip(targets, target_lengths, strict=True)]
    ends = np.cumsum(target_lengths)
    return [targets[end - length : end] for end, length in zip(ends, target_lengths, strict=True)]


def batch(
    scores: NDArray[np.float64],
    targets: NDArray[np.int64],
    input_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    blank: int,
    reduction: int,
    from_logits: bool,
    zero_infinity: bool,
    true_grad: bool,
    grad_out: NDArray[np.float64] | None,
    want_grad: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss and gradient of a batch whose lengths and labels are in range."""
    _, count, _ = scores.shape
    scale = np.ones(count)
    if reduction == MEAN:
        scale /= count * np.maximum(target_lengths, 1)
    losses = np.empty(count)
    gradient = np.zeros_like(scores if want_grad else scores[:0])
    weights = scale if grad_out is None else scale * grad_out
    for n, labels in enumerate(split_targets(targets, target_lengths)):
        valid = int(input_lengths[n])
        losses[n], row = _lattice.utterance(
            np.ascontiguousarray(scores[:valid, n]),
            np.ascontiguousarray(labels),
            blank,
            from_logits,
            true_grad,
            want_grad,
        )
        if zero_infinity and np.isposinf(losses[n]):
            losses[n] = 0.0
        elif want_grad:
            with np.errstate(invalid="ignore"):  # infinite weights times 0 are NaN, as they should
                gradient[:valid, n] = row * weights[n]
    loss = losses if reduction == NONE else np.asarray((losses * scale).sum())
    return loss, gradient


def checked(
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The first four arguments as arrays that fit each other, with lengths and labels in range."""
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(targets, dtype=np.int64)
    frame_counts = np.asarray(input_lengths, dtype=np.int64)
    label_counts = np.asarray(target_lengths, dtype=np.int64)
    if values.ndim != 3:
        raise ValueError(f"scores must have 3 dimensions (T, N, C), got {values.ndim}")
    frames, count, classes = values.shape
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[0] != count):
        raise ValueError(f"targets of shape {labels.shape} do not fit a batch of {count}")
    if frame_counts.shape != (count,) or label_counts.shape != (count,):
        raise ValueError(f"input_lengths and target_lengths must have {count} values each")
    if not 0 <= blank < classes:
        raise ValueError(f"blank is {blank}, outside of the {classes} classes")
    raise_error(find_error(frames, classes, labels, frame_counts, label_counts))
    return values, labels, frame_counts, label_counts


def raise_error(status: Status | None) -> None:
    """Raise for a status that is one."""
    if status is not None:
        code, row, value, extra = status
        raise ValueError(SENTENCES[code].format(row=row, value=value, extra=extra))


def find_blank(
    targets: NDArray[np.int64], target_lengths: NDArray[np.int64], blank: int
) -> Status | None:
    """The first label that is the blank, as (code, row, value, extra)."""
    for row, labels in enumerate(split_targets(targets, target_lengths)):
        found = np.flatnonzero(labels == blank)
        if found.size:
            return 7, row, blank, int(found[0])
    return None


def forced_align(
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    from_logits: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """See `fastctc.reference.forced_align`, of which this is the body."""
    values, labels, frame_counts, label_counts = checked(
        scores, targets, input_lengths, target_lengths, blank
    )
    raise_error(find_blank(labels, label_counts, blank))
    rows = split_targets(labels, label_counts)
    return _align.batch(values, rows, frame_counts, blank, from_logits)


def ctc_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    reduction: int,
    from_logits: bool,
    zero_infinity: bool,
    true_grad: bool,
    grad_out: ArrayLike | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `fastctc.reference.ctc_loss`, of which this is the body."""
    values, labels, frame_counts, label_counts = checked(
        scores, targets, input_lengths, target_lengths, blank
    )
    upstream = None if grad_out is None else np.asarray(grad_out, dtype=np.float64)
    return batch(
        values,
        labels,
        frame_counts,
        label_counts,
        blank,
        reduction,
        from_logits,
        zero_infinity,
        true_grad,
        upstream,
    )
