"""What the arguments of the loss must be, and what is said where they are not.

Where torch's loss has a sentence for a mistake, it is the sentence used here: programs match on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fastctc._arguments import whole_number

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
NONE = REDUCTIONS["none"]
DTYPE_CODES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
INTEGRAL = frozenset(
    {
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    }
)
# The names torch's own messages use.
SCALAR_TYPES = {
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
    torch.complex32: "ComplexHalf",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}
TENSORS = ("log_probs", "targets", "input_lengths", "target_lengths")
HALF = frozenset({torch.float16, torch.bfloat16})


class Options(NamedTuple):
    """The scalar arguments of the loss, checked."""

    blank: int
    reduction: int
    zero_infinity: bool
    from_logits: bool
    batch_first: bool
    true_grad: bool
    max_target_length: int | None = None


class Bounds(NamedTuple):
    """What a workspace is sized by, where it has to be had before the lengths can be seen."""

    max_labels: int
    total_labels: int


# Targets and lengths in int64, contiguous, where the kernel reads them.
Placed = tuple[Tensor, Tensor, Tensor, Bounds | None]
# Takes the targets, both lengths, and the numbers of frames, rows and classes.
Place = Callable[[Tensor, Tensor, Tensor, int, int, int], Placed]


class Problem(NamedTuple):
    """Tensors that are ready for a kernel, and the leading arguments of its call."""

    scores: Tensor
    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    arguments: tuple[Any, ...]
    # What the call writes: shape of the loss; time and batch stride of a contiguous gradient.
    loss_shape: tuple[int, ...]
    grad_strides: tuple[int, int]
    options: Options
    bounds: Bounds | None


def loss_dtype(scores_dtype: torch.dtype) -> torch.dtype:
    """Losses of half precision scores are float32."""
    return torch.float32 if scores_dtype in HALF else scores_dtype


def while_checking(device: torch.device) -> str:
    """The end of torch's sentences about sizes and lengths."""
    where = "allocate_outputs" if device.type == "cpu" else "gpu"
    return f"(while checking arguments for ctc_loss_{where})"


def check_options(
    blank: Any,
    reduction: Any,
    zero_infinity: Any,
    from_logits: Any,
    batch_first: Any,
    grad: Any,
    max_target_length: Any = None,
) -> Options:
    """Check the scalar arguments, except for what depends on the tensors."""
    if reduction not in ("mean", "sum", "none"):
        reduction = deprecated_reduction(reduction)
    if type(blank) is not int:
        blank = integer("blank", blank)
    if grad != "torch" and grad != "true":
        raise ValueError(f"grad must be 'torch' or 'true', got {grad!r}")
    if not type(zero_infinity) is type(from_logits) is type(batch_first) is bool:
        flags = {
            "zero_infinity": zero_infinity,
            "from_logits": from_logits,
            "batch_first": batch_first,
        }
        name, value = next(item for item in flags.items() if type(item[1]) is not bool)
        raise invalid_arguments(f"{name} must be a bool, got {type(value).__name__}")
    if max_target_length is not None:
        max_target_length = integer("max_target_length", max_target_length)
        check_bound(max_target_length)
    return Options(
        blank,
        REDUCTIONS[reduction],
        zero_infinity,
        from_logits,
        batch_first,
        grad == "true",
        max_target_length,
    )


def deprecated_reduction(reduction: Any) -> str:
    """The reduction that an old name stands for."""
    if reduction == "elementwise_mean":
        warnings.warn(
            "reduction='elementwise_mean' is deprecated. Please use reduction='mean' instead.",
            stacklevel=4,
        )
        return "mean"
    raise ValueError(f"{reduction} is not a valid value for reduction")


def integer(name: str, value: Any) -> int:
    """As `whole_number`, with the words of `torch.nn.functional.ctc_loss`."""
    try:
        return whole_number(name, value)
    except TypeError as error:
        raise invalid_arguments(str(error)) from None


def invalid_arguments(reason: str) -> TypeError:
    """What a call with an argument of the wrong type raises."""
    return TypeError(f"ctc_loss() received an invalid combination of arguments - {reason}")


def check_tensors(log_probs: Any, targets: Any) -> None:
    """The two arguments that can be nothing but tensors."""
    for name, value in (("log_probs", log_probs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise invalid_arguments(f"{name} must be a Tensor, got {type(value).__name__}")


def lengths_as_tensors(input_lengths: Any, target_lengths: Any) -> tuple[Tensor, Tensor]:
    """Both lengths as tensors; they come as two tensors, or as two lists or tuples."""
    both = (input_lengths, target_lengths)
    if isinstance(input_lengths, Tensor) and isinstance(target_lengths, Tensor):
        return both
    if not all(isinstance(lengths, (list, tuple)) for lengths in both):
        kinds = " and ".join(type(lengths).__name__ for lengths in both)
        raise invalid_arguments(
            "input_lengths and target_lengths must both be tensors, or both lists or tuples of "
            f"ints, got {kinds}"
        )
    return (
        length_list("input_lengths", input_lengths),
        length_list("target_lengths", target_lengths),
    )


def length_list(name: str, lengths: list[Any] | tuple[Any, ...]) -> Tensor:
    """An int64 tensor from a list or tuple of ints."""
    values = [
        length if type(length) is int else integer(f"{name}[{row}]", length)
        for row, length in enumerate(lengths)
    ]
    for row, length in enumerate(values):
        if not -(2**63) <= length < 2**63:
            raise RuntimeError(f"{name}[{row}] is {length}, which does not fit into 64 bits")
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def check_dense(name: str, values: Tensor) -> None:
    """Raise for a tensor that is not simply a block of numbers."""
    if values.is_nested:
        raise RuntimeError(f"{name} must be a dense tensor, got a nested tensor")
    if values.layout is not torch.strided:
        raise RuntimeError(f"{name} must be a dense tensor, got one of layout {values.layout}")


def host_integers(name: str, values: Tensor) -> Tensor:
    """The values as contiguous int64 on the host."""
    # Asking is several times cheaper than conversions that have nothing to do.
    try:
        if values.dtype is torch.int64 and values.is_cpu and values.is_contiguous():
            return values
    except RuntimeError:  # a sparse tensor cannot say whether it is contiguous
        check_dense(name, values)
        raise
    check_dense(name, values)
    return values.detach().to(device="cpu", dtype=torch.int64).contiguous()


def check_reduction_number(reduction: int) -> None:
    """Raise for a number that stands for no reduction."""
    if reduction not in (0, 1, 2):
        raise ValueError(f"reduction must be 0 (none), 1 (mean) or 2 (sum), got {reduction}")


def check_grad_out(
    grad_out: Tensor, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...] | None = None
) -> None:
    """Raise for a `grad_out` that has not the loss's dtype and device, or shape where given."""
    if grad_out.dtype is not dtype:
        raise RuntimeError(
            f"grad_out must have the dtype of the loss, {dtype}, got {grad_out.dtype}"
        )
    if grad_out.device != device:
        raise RuntimeError(
            f"grad_out must be on the device of the loss, {device}, and is on {grad_out.device}"
        )
    if shape is not None and tuple(grad_out.shape) != shape:
        raise RuntimeError(
            f"grad_out must have the shape of the loss, {shape}, got {tuple(grad_out.shape)}"
        )


def check_scores(log_probs: Tensor) -> None:
    """Raise for scores that no kernel takes, in torch's order of checks."""
    device = log_probs.device
    if log_probs.layout is not torch.strided:
        raise NotImplementedError(
            f"log_probs must be a dense tensor (layout torch.strided), got {log_probs.layout}"
        )
    if log_probs.dtype not in DTYPE_CODES:
        name = SCALAR_TYPES.get(log_probs.dtype, str(log_probs.dtype).removeprefix("torch."))
        raise NotImplementedError(f"\"ctc_loss_{device.type}\" not implemented for '{name}'")
    if log_probs.numel() == 0:
        raise RuntimeError("log_probs tensor must not be empty")
    if log_probs.dim() not in (2, 3):
        raise RuntimeError(
            f"Expected 3-dimensional tensor, but got {log_probs.dim()}-dimensional tensor for "
            f"argument #1 'log_probs' {while_checking(device)}"
        )


def check_targets(targets: Tensor, batch: int, log_probs: Tensor) -> None:
    """Raise for targets that are neither padded nor concatenated."""
    try:
        shape = targets.shape
    except RuntimeError:  # a nested tensor has none
        check_dense("targets", targets)
        raise
    if not 1 <= len(shape) <= 2:
        raise RuntimeError(
            f"Expected 1 to 2 dimensions, but got {len(shape)}-dimensional tensor for "
            f"argument #2 'targets' {while_checking(log_probs.device)}"
        )
    if len(shape) == 2 and shape[0] != batch:
        raise RuntimeError(
            f"Expected tensor to have size {batch} at dimension 0, but got size {shape[0]} for "
            f"argument #2 'targets' {while_checking(log_probs.device)}"
        )


def prepare(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    options: Options,
    place: Place,
) -> Problem:
    """Check the tensors' types and shapes, and lay them out for a kernel.

    `place` brings targets and lengths to the kernel. What a length or a label may be is checked
    there or by the kernel: see `raise_status`.
    """
    dtype = DTYPE_CODES.get(log_probs.dtype)
    try:
        shape = log_probs.shape
    except RuntimeError:  # a nested tensor has none
        check_dense("log_probs", log_probs)
        raise
    dims = len(shape)
    if dtype is None or log_probs.layout is not torch.strided or not 2 <= dims <= 3 or 0 in shape:
        check_scores(log_probs)
    if log_probs.is_neg():
        log_probs = log_probs.resolve_neg()
    strides = log_probs.stride()
    if strides[-1] != 1 and shape[-1] != 1:
        log_probs = log_probs.contiguous()
        strides = log_probs.stride()
    loss_shape: tuple[int, ...] = ()
    if dims == 2:
        frames, classes = shape
        batch = 1
        stride_t, stride_n = strides[0], 0
        grad_strides = (classes, 0)
    elif options.batch_first:
        batch, frames, classes = shape
        stride_n, stride_t, _ = strides
        grad_strides = (classes, frames * classes)
    else:
        frames, batch, classes = shape
        stride_t, stride_n, _ = strides
        grad_strides = (batch * classes, classes)
    if options.reduction == NONE and dims == 3:
        loss_shape = (batch,)

    if input_lengths.dtype not in INTEGRAL:
        raise RuntimeError("input_lengths must be integral")
    if target_lengths.dtype not in INTEGRAL:
        raise RuntimeError("target_lengths must be integral")
    if input_lengths.numel() != batch:
        raise RuntimeError("input_lengths must be of size batch_size")
    if target_lengths.numel() != batch:
        raise RuntimeError("target_lengths must be of size batch_size")
    if not 0 <= options.blank < classes:
        raise RuntimeError("blank must be in label range")
    check_targets(targets, batch, log_probs)
    targets, input_lengths, target_lengths, bounds = place(
        targets, input_lengths, target_lengths, frames, batch, classes
    )
    target_shape = targets.shape
    width = target_shape[-1]
    labels_at = targets.data_ptr()
    addresses = (
        log_probs.data_ptr(),
        labels_at or targets.numel() == 0,
        input_lengths.data_ptr(),
        target_lengths.data_ptr(),
    )
    if 0 in addresses:
        tensors = (log_probs, targets, input_lengths, target_lengths)
        index = addresses.index(0)
        raise_without_memory(TENSORS[index], tensors[index])
    arguments = (
        addresses[0],
        dtype,
        frames,
        batch,
        classes,
        stride_t,
        stride_n,
        labels_at,
        width,
        max(width, 1) if len(target_shape) == 2 else 0,
        addresses[2],
        addresses[3],
        options.blank,
        options.from_logits,
        options.zero_infinity,
        options.true_grad,
        options.reduction,
    )
    return Problem(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        arguments,
        loss_shape,
        grad_strides,
        options,
        bounds,
    )


def raise_without_memory(name: str, values: Tensor) -> NoReturn:
    """Name the tensor that has values by its shape, and no memory to hold them."""
    check_dense(name, values)
    raise RuntimeError(
        f"{name} has no memory: it is a fake tensor outside of its mode, or its storage was freed"
    )


def check_bound(max_target_length: int | None) -> None:
    """Raise for a bound that no target length can stay within."""
    if max_target_length is not None and max_target_length < 0:
        raise ValueError(f"max_target_length must be at least 0, got {max_target_length}")


def check_max_target_length(bound: int, target_lengths: Tensor) -> None:
    """Hold the caller to the bound on target lengths that the workspace is sized by."""
    longest = int(target_lengths.max())
    if longest > bound:
        row = int(target_lengths.argmax())
        raise ValueError(f"target_lengths[{row}] is {longest}, above max_target_length={bound}")


def raise_status(
    status: tuple[int, int, int, int],
    frames: int,
    classes: int,
    targets: Tensor,
    target_lengths: Tensor,
    device: torch.device,
) -> None:
    """Raise for a length or label that was found out of range.

    `target_lengths` are read only where the status speaks of them, or of what they cover.
    """
    code, row, value, extra = status
    width = targets.shape[-1]
    checking = while_checking(device)
    if code == 5 and (shortest := int(target_lengths.min())) < 0:
        code, value = 3, shortest  # the reason why the sum is off
    if code == 1:
        raise RuntimeError(
            f"Expected input_lengths to have value at most {frames}, but got value {value} "
            f"{checking}"
        )
    if code in (2, 3):
        name = "input_lengths" if code == 2 else "target_lengths"
        raise RuntimeError(
            f"Expected {name} to have value at least 0, but got value {value} {checking}"
        )
    if code == 4:
        longest = int(target_lengths.max())
        raise RuntimeError(
            f"Expected tensor to have size at least {longest} at dimension 1, but got size "
            f"{width} for argument #2 'targets' {checking}"
        )
    if code == 5:
        raise RuntimeError(
            f"Expected tensor to have size {value} at dimension 0, but got size {width} for "
            f"argument #2 'targets' {checking}"
        )
    raise IndexError(
        f"targets: label {value} at position {extra} of row {row} is out of bounds for "
        f"{classes} classes: it must be at least 0 and below {classes}"
    )
