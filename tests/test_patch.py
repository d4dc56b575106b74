"""Putting fastctc in the place of torch's loss, and taking it out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import make_case
from torch.nn.functional import ctc_loss as imported_by_name

import fastctc
from fastctc._backends import BACKENDS

TORCH_FUNCTIONAL = F.ctc_loss
TORCH_BUILTIN = torch.ctc_loss


def counted(function: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    def counting(*args: Any) -> Any:
        seen.append(1)
        return function(*args)

    return counting


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collects one item for each call that reaches the kernel of fastctc."""
    seen: list[int] = []
    backend = BACKENDS["cpu"]
    for name in ("loss", "loss_for_backward"):
        monkeypatch.setattr(backend, name, counted(getattr(backend, name), seen))
    yield seen
    assert F.ctc_loss is TORCH_FUNCTIONAL
    assert torch.ctc_loss is TORCH_BUILTIN


CASE = make_case(90)
ARGUMENTS = (CASE.scores.log_softmax(-1), *CASE.arguments()[1:4])


class Doubled(torch.nn.CTCLoss):
    def forward(self, *args: Any) -> torch.Tensor:
        return 2 * super().forward(*args)


MADE_BEFORE = torch.nn.CTCLoss(2, "sum", True)
WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "function": lambda *args: F.ctc_loss(*args),
    "function with options": lambda *args: F.ctc_loss(*args, 2, "none", True),
    "function with names": lambda *args: F.ctc_loss(
        *args, blank=2, reduction="sum", zero_infinity=True
    ),
    "function by name": lambda *args: imported_by_name(*args),
    "builtin": lambda *args: torch.ctc_loss(*args),
    "builtin, mean": lambda *args: torch.ctc_loss(*args, 0, 1, False),
    "builtin, sum": lambda *args: torch.ctc_loss(*args, reduction=2),
    "builtin, other number": lambda *args: torch.ctc_loss(*args, 0, 5),
    "module": lambda *args: torch.nn.CTCLoss()(*args),
    "module with options": lambda *args: torch.nn.CTCLoss(2, "none", True)(*args),
    "module made before": lambda *args: MADE_BEFORE(*args),
    "subclass": lambda *args: Doubled()(*args),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_call_it(calls: list[int], way: str) -> None:
    expected = WAYS[way](*ARGUMENTS)
    assert not calls
    with fastctc.patch_torch():
        result = WAYS[way](*ARGUMENTS)
    assert len(calls) == 1
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    WAYS[way](*ARGUMENTS)
    assert len(calls) == 1


def test_gradient_is_ours_too(calls: list[int]) -> None:
    grads = []
    for patched in (True, False):
        scores = CASE.scores.clone().requires_grad_()
        patch = fastctc.patch_torch() if patched else None
        F.ctc_loss(scores.log_softmax(-1), *ARGUMENTS[1:]).backward()
        if patch:
            patch.undo()
        grads.append(scores.grad)
    assert len(calls) == 1
    torch.testing.assert_close(*grads, rtol=0, atol=1e-5)


def test_half_precision_is_served(calls: list[int]) -> None:
    with fastctc.patch_torch():
        assert F.ctc_loss(ARGUMENTS[0].half(), *ARGUMENTS[1:]).dtype is torch.float32
    assert len(calls) == 1


def test_what_is_not_served_goes_to_torch(calls: list[int]) -> None:
    class Watched(torch.Tensor):
        seen: list[Any] = []  # noqa: RUF012

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            cls.seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    with fastctc.patch_torch():
        with pytest.raises(NotImplementedError, match="Meta"):
            F.ctc_loss(ARGUMENTS[0].to("meta"), *ARGUMENTS[1:])
        with pytest.raises(NotImplementedError, match="'Long'"):
            F.ctc_loss(ARGUMENTS[0].long(), *ARGUMENTS[1:])
        with pytest.raises(NotImplementedError, match="'Float8_e4m3fn'"):
            F.ctc_loss(ARGUMENTS[0].to(torch.float8_e4m3fn), *ARGUMENTS[1:])
        with pytest.raises(TypeError, match="invalid combination"):
            F.ctc_loss([1.0], *ARGUMENTS[1:])
        with pytest.raises(TypeError, match="invalid combination"):
            torch.ctc_loss(*ARGUMENTS, 0, "mean")
        torch.ctc_loss(ARGUMENTS[0].as_subclass(Watched), *ARGUMENTS[1:])
        assert not calls
        F.ctc_loss(ARGUMENTS[0].as_subclass(Watched), *ARGUMENTS[1:])
    assert {TORCH_FUNCTIONAL, TORCH_BUILTIN} <= set(Watched.seen)


def test_modes_that_intercept_functions_see_torch_name(calls: list[int]) -> None:
    class Recording(torch.overrides.TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    with fastctc.patch_torch(), Recording() as mode:
        loss = F.ctc_loss(*ARGUMENTS)
    assert TORCH_FUNCTIONAL in mode.seen
    torch.testing.assert_close(loss, TORCH_FUNCTIONAL(*ARGUMENTS))
    with fastctc.patch_torch(), torch.device("cpu"):
        F.ctc_loss(*ARGUMENTS)
    assert calls


def test_undo_without_a_block(calls: list[int]) -> None:
    patch = fastctc.patch_torch()
    F.ctc_loss(*ARGUMENTS)
    patch.undo()
    patch.undo()
    F.ctc_loss(*ARGUMENTS)
    assert len(calls) == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_nested_patches_are_undone_in_any_order(calls: list[int], order: tuple[int, ...]) -> None:
    patches = [fastctc.patch_torch() for _ in range(3)]
    for done, index in enumerate(order):
        F.ctc_loss(*ARGUMENTS)
        assert len(calls) == done + 1
        patches[index].undo()
    F.ctc_loss(*ARGUMENTS)
    assert len(calls) == 3


def test_block_is_left_by_an_exception(calls: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), fastctc.patch_torch():
        raise ZeroDivisionError
    F.ctc_loss(*ARGUMENTS)
    assert not calls


def test_wrapper_of_someone_else_survives(calls: list[int], monkeypatch: Any) -> None:
    patch = fastctc.patch_torch()
    ours = F.ctc_loss
    wrapped: list[int] = []

    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        wrapped.append(1)
        return ours(*args, **kwargs)

    monkeypatch.setattr(F, "ctc_loss", wrapper)
    patch.undo()
    loss = F.ctc_loss(*ARGUMENTS)
    assert wrapped == [1]
    assert not calls
    torch.testing.assert_close(loss, TORCH_FUNCTIONAL(*ARGUMENTS))
    F.ctc_loss = TORCH_FUNCTIONAL


def test_wrapper_made_before_is_put_back(calls: list[int]) -> None:
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        return TORCH_FUNCTIONAL(*args, **kwargs)

    F.ctc_loss = wrapper
    try:
        with fastctc.patch_torch():
            F.ctc_loss(*ARGUMENTS)
            assert len(calls) == 1
        assert F.ctc_loss is wrapper
    finally:
        F.ctc_loss = TORCH_FUNCTIONAL


def test_transforms_that_are_not_served_go_to_torch(calls: list[int]) -> None:
    scores, rest = ARGUMENTS[0], ARGUMENTS[1:]

    def way(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        return torch.func.grad(lambda x: function(x, *rest).sum())(scores)

    expected = way(TORCH_FUNCTIONAL), way(TORCH_BUILTIN)
    with fastctc.patch_torch():
        result = way(F.ctc_loss), way(torch.ctc_loss)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(scores, torch.ones_like(scores))
            for function in (F.ctc_loss, torch.ctc_loss):
                with pytest.raises(NotImplementedError, match="forward AD with _ctc_loss"):
                    function(dual, *rest)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert not calls
