"""CUDA tensors to the compiled kernels: allocate on the device, and call on its current stream.

Nothing here waits for the device, unless `config.validate_device_inputs` asks for it, or allocates
outside of torch's allocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastctc import _checks, config
from fastctc._checks import Bounds, Options, Placed, Problem, loss_dtype

# What `row_faults` holds, in the words of an exception.
_LABEL_FAULT = 6
_FAULTS = {
    1: "input_lengths above the number of frames",
    2: "input_lengths below 0",
    3: "target_lengths below 0",
    4: "target_lengths above the width of targets",
    5: "target_lengths that do not add up to the size of targets",
    _LABEL_FAULT: "a label outside of the classes",
    8: "target_lengths above max_target_length or the size of targets",
}
_MOST_ROWS_NAMED = 8


class Kept(NamedTuple):
    """What the backward kernel must be told as the forward one was."""

    bounds: Bounds
    max_workspace_bytes: int


class Cuda:
    """The loss on CUDA devices: the forward pass keeps posteriors, the backward one reads them.

    Args:
        library: offers `ctc_loss_check` and the functions named `ctc_loss_cuda_*` of the compiled
            module.
    """

    def __init__(self, library: Any) -> None:
        self.library = library

    def sees(self, values: Tensor) -> bool:
        """Whether the host can read these values without waiting for a device."""
        return values.is_cpu

    def device_and_stream(self, scores: Tensor) -> tuple[int, int]:
        """The index of the scores' device, and the handle of what is now its current stream."""
        index = scores.get_device()
        return index, torch._C._cuda_getCurrentRawStream(index)

    def empty(self, scores: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory on the device of the scores, aligned to 256 bytes."""
        return scores.new_empty(shape, dtype=dtype)

    def upload(self, values: Tensor, scores: Tensor) -> Tensor:
        """Host memory that belongs to nobody else, on the device of the scores."""
        # It is not pinned: CUDA has taken its contents by the time this returns.
        return values.to(scores.device, non_blocking=True)

    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured, which would keep an address of host memory."""
        return torch.cuda.is_current_stream_capturing()

    def call(self, entry: str, *arguments: Any) -> None:
        """Put kernels on the stream."""
        getattr(self.library, entry)(*arguments)

    def prepare(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        options: Options,
    ) -> Problem:
        """See `Backend`. What the host sees is checked there, and sizes the workspace."""

        def place(*given: Any) -> Placed:
            return self._place(log_probs, options.max_target_length, *given)

        return _checks.prepare(log_probs, targets, input_lengths, target_lengths, options, place)

    def loss(self, problem: Problem) -> Tensor:
        """The loss alone: no gradient is prepared for."""
        loss, _, _ = self._forward(problem, want_grad=False)
        return loss

    def loss_for_backward(self, problem: Problem) -> tuple[Tensor, tuple[Tensor, ...], Kept]:
        """The loss, the posteriors of its labels, and how these are laid out."""
        loss, saved, kept = self._forward(problem, want_grad=True)
        return loss, (saved,), kept

    def backward(
        self, saved: tuple[Tensor, ...], kept: Kept, options: Options, grad_out: Tensor
    ) -> Tensor:
        """The gradient times `grad_out`, which is read on the device."""

        def placed(*given: Any) -> Placed:
            return *given[:3], kept.bounds

        log_probs, targets, input_lengths, target_lengths, posteriors = saved
        problem = _checks.prepare(
            log_probs, targets, input_lengths, target_lengths, options, placed
        )
        return self._backward(problem, posteriors, kept, grad_out)

    def gradient(self, problem: Problem, grad_out: Tensor) -> Tensor:
        """The gradient from scratch."""
        _, saved, kept = self._forward(problem, want_grad=True)
        return self._backward(problem, saved, kept, grad_out)

    def _place(
        self,
        scores: Tensor,
        limit: int | None,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        frames: int,
        batch: int,
        classes: int,
    ) -> Placed:
        """Targets and lengths on the device, after a check of those that the host sees."""
        given = dict(
            zip(_checks.TENSORS[1:], (targets, input_lengths, target_lengths), strict=True)
        )
        seen = [self.sees(values) for values in given.values()]
        if any(seen) and self.capturing():
            on_host = [name for name, here in zip(given, seen, strict=True) if here]
            raise RuntimeError(
                f"{', '.join(on_host)}: on the host, and must be on {scores.device} while a CUDA "
                "graph is captured"
            )
        values = [
            _checks.host_integers(name, each) if here else _on_device(name, each, scores)
            for (name, each), here in zip(given.items(), seen, strict=True)
        ]
        addresses = [
            _host_address(name, each) if here else 0
            for name, each, here in zip(given, values, seen, strict=True)
        ]
        targets, _, target_lengths = values
        width = targets.shape[-1]
        stride = max(width, 1) if targets.dim() == 2 else 0
        status = self.library.ctc_loss_check(
            frames, batch, classes, addresses[0], width, stride, addresses[1], addresses[2]
        )
        if status is not None:
            device = scores.device
            _checks.raise_status(status, frames, classes, targets, target_lengths, device)
        if seen[2]:
            if limit is not None:
                _checks.check_max_target_length(limit, target_lengths)
            lengths = target_lengths.flatten().tolist()
            bounds = Bounds(max(lengths), sum(lengths))
        else:
            longest = width if limit is None else min(width, limit)
            bounds = Bounds(longest, batch * longest if stride else width)
        targets, input_lengths, target_lengths = self._upload_together(values, seen, scores)
        return targets, input_lengths, target_lengths, bounds

    def _upload_together(
        self, values: list[Tensor], seen: list[bool], scores: Tensor
    ) -> list[Tensor]:
        """What is on the host, in one transfer."""
        on_host = [each for each, here in zip(values, seen, strict=True) if here]
        if not on_host:
            return values
        # A copy also where there is one tensor, which the caller may change or may have pinned.
        packed = self.upload(torch.cat([each.flatten() for each in on_host]), scores)
        parts = iter(packed.split([each.numel() for each in on_host]))
        return [
            next(parts).view(each.shape) if here else each
            for each, here in zip(values, seen, strict=True)
        ]

    def _forward(self, problem: Problem, want_grad: bool) -> tuple[Tensor, Tensor, Kept]:
        scores, bounds = problem.scores, problem.bounds
        assert bounds is not None
        max_workspace_bytes = config.max_workspace_mb << 20
        _, dtype, frames, batch, classes = problem.arguments[:5]
        saved_bytes, scratch_bytes = self.library.ctc_loss_cuda_memory(
            dtype, frames, batch, classes, *bounds, want_grad, max_workspace_bytes
        )
        saved = self.empty(scores, (saved_bytes,), torch.uint8)
        scratch = self.empty(scores, (scratch_bytes,), torch.uint8)
        loss = self.empty(scores, problem.loss_shape, loss_dtype(scores.dtype))
        row_faults = None
        if config.validate_device_inputs:
            row_faults = self.empty(scores, (batch,), torch.int32)
        self.call(
            "ctc_loss_cuda_forward",
            *self.device_and_stream(scores),
            *problem.arguments,
            *bounds,
            want_grad,
            max_workspace_bytes,
            saved.data_ptr(),
            scratch.data_ptr(),
            loss.data_ptr(),
            0 if row_faults is None else row_faults.data_ptr(),
        )
        if row_faults is not None:
            _raise_faults(row_faults)
        return loss, saved, Kept(bounds, max_workspace_bytes)

    def _backward(self, problem: Problem, saved: Tensor, kept: Kept, grad_out: Tensor) -> Tensor:
        scores = problem.scores
        grad_out = grad_out.detach().resolve_neg().contiguous()
        gradient = self.empty(scores, scores.shape, scores.dtype)
        self.call(
            "ctc_loss_cuda_backward",
            *self.device_and_stream(scores),
            *problem.arguments,
            *kept.bounds,
            True,
            kept.max_workspace_bytes,
            saved.data_ptr(),
            grad_out.data_ptr(),
            gradient.data_ptr(),
            *problem.grad_strides,
        )
        return gradient


def _host_address(name: str, values: Tensor) -> int:
    """Where the values are; empty tensors have no address."""
    address = values.data_ptr()
    if address == 0 and values.numel():
        _checks.raise_without_memory(name, values)
    return address


def _on_device(name: str, values: Tensor, scores: Tensor) -> Tensor:
    """The values as contiguous int64 on the device of the scores."""
    _checks.check_dense(name, values)
    values = values.detach().to(device=scores.device, dtype=torch.int64, non_blocking=True)
    return values.contiguous()


def _raise_faults(row_faults: Tensor) -> None:
    """Wait for the device, and raise where it found a length or label out of range."""
    faults = {row: code for row, code in enumerate(row_faults.tolist()) if code}
    if not faults:
        return
    reasons = []
    for code in sorted(set(faults.values())):
        rows = [str(row) for row, found in faults.items() if found == code]
        named = ", ".join(rows[:_MOST_ROWS_NAMED])
        if len(rows) > _MOST_ROWS_NAMED:
            named += f" and {len(rows) - _MOST_ROWS_NAMED} more"
        reasons.append(f"{_FAULTS[code]} (row {named})")
    sentence = f"ctc_loss found on {row_faults.device}: {'; '.join(reasons)}"
    raise (IndexError if set(faults.values()) == {_LABEL_FAULT} else RuntimeError)(sentence)
