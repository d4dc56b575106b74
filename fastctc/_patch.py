"""Put fastctc in the place of torch's CTC loss, for programs that cannot be edited."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastctc._backends import BACKENDS
from fastctc._checks import DTYPE_CODES
from fastctc.loss import ctc_loss, unserved_transform

_lock = threading.Lock()
_active = 0

_torch_functional: Callable[..., Tensor] = torch.nn.functional.ctc_loss
_torch_builtin: Callable[..., Tensor] = torch.ctc_loss

# The builtin takes the reduction as a number.
_REDUCTION_NAMES = {1: "mean", 2: "sum"}


def _serves(log_probs: Any) -> bool:
    """Whether these scores are ours to take."""
    return (
        _active > 0
        and isinstance(log_probs, Tensor)
        and log_probs.device.type in BACKENDS
        and log_probs.dtype in DTYPE_CODES
        and log_probs.layout is torch.strided
        and (torch.compiler.is_compiling() or unserved_transform(log_probs) is None)
    )


def _functional(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Stands in for ``torch.nn.functional.ctc_loss``."""
    arguments = (log_probs, targets, input_lengths, target_lengths)
    options: dict[str, Any] = {
        "blank": blank,
        "reduction": reduction,
        "zero_infinity": zero_infinity,
    }
    if torch.overrides.has_torch_function(arguments):
        # Tensor classes and modes that intercept torch's function know it by its identity.
        result: Tensor = torch.overrides.handle_torch_function(
            _torch_functional, arguments, *arguments, **options
        )
        return result
    return (ctc_loss if _serves(log_probs) else _torch_functional)(*arguments, **options)


def _builtin(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    # torch documents the mean here, and its argument parser takes 0: a call that leaves it out
    # gets the losses of the rows.
    reduction: int = 0,
    zero_infinity: bool = False,
) -> Tensor:
    """Stands in for ``torch.ctc_loss``, which ``torch.nn.functional.ctc_loss`` ends in."""
    arguments = (log_probs, targets, input_lengths, target_lengths)
    overridden = torch.overrides.has_torch_function(arguments)
    if not _serves(log_probs) or overridden or type(reduction) is not int:
        return _torch_builtin(*arguments, blank, reduction, zero_infinity)
    name = _REDUCTION_NAMES.get(reduction, "none")
    return ctc_loss(*arguments, blank, name, zero_infinity)


class Patch:
    """What `patch_torch` returns: undo it by name, or at the end of a ``with`` block."""

    def __init__(self) -> None:
        self._undone = False

    def undo(self) -> None:
        """Take this patch back; a second time does nothing. After the last, torch is itself."""
        global _active
        with _lock:
            if self._undone:
                return
            self._undone = True
            _active -= 1
            if _active == 0:
                # Someone who wrapped our functions keeps the wrapper: with no patch active, what
                # it wraps goes straight to torch.
                if torch.nn.functional.ctc_loss is _functional:
                    torch.nn.functional.ctc_loss = _torch_functional
                if torch.ctc_loss is _builtin:
                    torch.ctc_loss = _torch_builtin

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch_torch() -> Patch:
    """Make torch's CTC loss ours: ``F.ctc_loss``, ``torch.ctc_loss`` and ``nn.CTCLoss``.

    Modules made before the call are included, and so is code that has imported torch's function by
    name, as it ends in ``torch.ctc_loss``. Devices, dtypes and transforms (torch.func, forward-mode
    differentiation) that fastctc does not serve go to torch as before. Tensor classes and modes
    that intercept torch's function still do. Patches may be nested, and undone in any order. They
    hold for all threads.

    Returns:
        A handle with ``undo()``, which is also a context manager.

    Example:
        >>> with patch_torch():
        ...     loss = torch.nn.CTCLoss()(log_probs, targets, input_lengths, target_lengths)
    """
    global _active, _torch_functional, _torch_builtin
    with _lock:
        if _active == 0:
            if torch.nn.functional.ctc_loss is not _functional:
                _torch_functional = torch.nn.functional.ctc_loss
            if torch.ctc_loss is not _builtin:
                _torch_builtin = torch.ctc_loss
            torch.nn.functional.ctc_loss = _functional
            torch.ctc_loss = _builtin  # type: ignore[assignment]
        _active += 1
    return Patch()
