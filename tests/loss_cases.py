"""Inputs for tests of the CTC loss, and what they must give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastctc
from fastctc import reference

LAYOUTS = ("padded", "concatenated")
# How far a gradient may be off after it was rounded to the dtype of the scores.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 0.0}


@dataclass
class Case:
    """Time-major scores and what goes with them."""

    scores: Tensor
    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    blank: int = 0

    def arguments(self) -> tuple[Any, ...]:
        return self.scores, self.targets, self.input_lengths, self.target_lengths, self.blank

    def with_scores(self, scores: Tensor) -> Case:
        return replace(self, scores=scores)


def labels_for(
    rng: np.random.Generator, classes: int, blank: int, count: int, repeats: bool
) -> np.ndarray:
    """Labels that are not blank, all the same where repeats are asked for."""
    alphabet = np.array([c for c in range(classes) if c != blank], dtype=np.int64)
    if count == 0 or alphabet.size == 0:
        return np.zeros(0, dtype=np.int64)
    if repeats:
        return np.full(count, rng.choice(alphabet))
    return rng.choice(alphabet, count)


def make_case(
    seed: int,
    frames: int = 30,
    batch: int = 4,
    classes: int = 9,
    labels: int = 8,
    *,
    blank: int = 0,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    layout: str = "padded",
    ragged: bool = True,
    repeats: bool = False,
    fitting: bool = True,
    garbage: int | None = None,
) -> Case:
    """A random batch of logits.

    With `fitting` every row has frames enough for its labels. `garbage` fills what a padded row has
    past its labels.
    """
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((frames, batch, classes)) * scale
    rows, input_lengths = [], []
    for n in range(batch):
        count = labels if not ragged or n == 0 else int(rng.integers(0, labels + 1))
        row = labels_for(rng, classes, blank, count, repeats)
        if fitting:
            while row.size + int((row[1:] == row[:-1]).sum()) > frames:
                row = row[:-1]
        shortest = row.size + int((row[1:] == row[:-1]).sum()) if fitting else 0
        full = not ragged or n == batch - 1
        input_lengths.append(frames if full else int(rng.integers(shortest, frames + 1)))
        rows.append(row)
    target_lengths = [row.size for row in rows]
    if layout == "concatenated":
        targets = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    else:
        targets = np.full((batch, labels), blank if garbage is None else garbage, dtype=np.int64)
        for n, row in enumerate(rows):
            targets[n, : row.size] = row
    return Case(
        torch.tensor(scores, dtype=dtype),
        torch.tensor(targets),
        torch.tensor(input_lengths),
        torch.tensor(target_lengths),
        blank,
    )


def ours(case: Case, grad_out: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of fastctc."""
    scores = case.scores.detach().requires_grad_()
    loss = fastctc.ctc_loss(scores, *case.arguments()[1:], **options)
    (grad,) = torch.autograd.grad(
        loss, scores, torch.ones_like(loss) if grad_out is None else grad_out
    )
    return loss.detach(), grad


def oracle(
    case: Case, grad_out: Tensor | None = None, grad: str = "torch", **options: Any
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the float64 reference."""
    loss, gradient = reference.ctc_loss(
        case.scores.detach().double().numpy(),
        case.targets.numpy(),
        case.input_lengths.numpy(),
        case.target_lengths.numpy(),
        blank=case.blank,
        true_grad=grad == "true",
        grad_out=None if grad_out is None else grad_out.double().numpy(),
        **options,
    )
    return torch.from_numpy(np.asarray(loss)), torch.from_numpy(gradient)


def torch_float64(case: Case, from_logits: bool = False, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of torch's own loss in float64."""
    scores = case.scores.detach().double().requires_grad_()
    log_probs = scores.log_softmax(-1) if from_logits else scores
    loss = torch.nn.functional.ctc_loss(log_probs, *case.arguments()[1:], **options)
    (grad,) = torch.autograd.grad(loss, scores, torch.ones_like(loss))
    return loss.detach(), grad


def padding_mask(case: Case) -> Tensor:
    """(T, N): True on frames past the end of their row."""
    return torch.arange(case.scores.shape[0])[:, None] >= case.input_lengths


def assert_close(
    case: Case,
    result: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    tolerance: float | None = None,
) -> None:
    """The loss within `tolerance` relative, the gradient within it absolute, padding exactly 0."""
    dtype = case.scores.dtype
    if tolerance is None:
        tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    loss, grad = result
    expected_loss, expected_grad = expected
    torch.testing.assert_close(
        loss.double(), expected_loss.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
    torch.testing.assert_close(
        grad.double(),
        expected_grad.double(),
        rtol=ROUNDING.get(dtype, 0.0),
        atol=tolerance,
        equal_nan=True,
    )
    padded = grad[padding_mask(case)]
    assert torch.equal(padded, torch.zeros_like(padded))
