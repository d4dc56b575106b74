"""How far float32 results are from float64 ones, for ordinary and for difficult inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

INF = math.inf

# The planted survivor: labels that the early frames rush through, and by how many nats in all
# they prefer that to waiting. e^-690.8 is 1e-300; a path may take one of the labels along.
RUSHED_LABELS = 10
RUSHED_NATS = 900.0


@dataclass(frozen=True, eq=False)
class AccuracyCase:
    """``logits`` is float32 (T, N, C); blank is class 0."""

    name: str
    description: str
    logits: torch.Tensor
    targets: torch.Tensor
    input_lengths: torch.Tensor
    target_lengths: torch.Tensor


@dataclass(frozen=True)
class Errors:
    """Largest relative error of a row's loss, largest absolute error of a gradient entry.

    Gradients are those of the sum of the losses. NaN where a value that should be finite is not.
    """

    loss: float
    gradient: float


Result = tuple[torch.Tensor, torch.Tensor]


def _targets(
    generator: torch.Generator, batch: int, labels: int, classes: range, longest_run: int
) -> torch.Tensor:
    """Labels from ``classes`` in runs of one to ``longest_run`` equal ones."""
    rows = []
    for _ in range(batch):
        values = torch.randint(classes.start, classes.stop, (labels,), generator=generator)
        runs = torch.randint(1, longest_run + 1, (labels,), generator=generator)
        rows.append(values.repeat_interleave(runs)[:labels])
    return torch.stack(rows)


def _build(
    name: str,
    description: str,
    *,
    frames: int,
    batch: int = 2,
    classes: int = 32,
    labels: int,
    scale: float = 1.0,
    blank_bonus: float = 0.0,
    masked_share: float = 0.0,
    longest_run: int = 1,
    survivor: bool = False,
    ragged: bool = False,
) -> AccuracyCase:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    logits = torch.randn(frames, batch, classes, generator=generator) * scale
    logits[:, :, 0] += blank_bonus
    # The last two classes are in no target, so that they can be masked throughout.
    usable = range(RUSHED_LABELS + 1 if survivor else 1, classes - 2)
    targets = _targets(generator, batch, labels, usable, longest_run)
    if masked_share:
        mask = torch.rand(logits.shape, generator=generator) < masked_share
        mask[:, :, 0] = False  # waiting in blanks stays possible
        mask[:, :, classes - 2 :] = True
        logits[mask] = -INF
    if survivor:
        targets[:, :RUSHED_LABELS] = torch.arange(1, RUSHED_LABELS + 1)
        _plant_survivor(logits, generator)
    lengths = torch.full((batch,), frames)
    target_lengths = torch.full((batch,), labels)
    if ragged:
        lengths -= torch.arange(batch) * (frames // (4 * batch))
        target_lengths -= torch.arange(batch) * (labels // (2 * batch))
    return AccuracyCase(name, description, logits, targets, lengths, target_lengths)


def _plant_survivor(logits: torch.Tensor, generator: torch.Generator) -> None:
    """Make the early frames prefer what the frames after them make impossible.

    Labels 1 to K stand at the start of each target and nowhere else in it. The first 2K frames
    favour emitting them all; the next 3K frames forbid everything but emitting them (again), so
    whatever had emitted more than the first of them is dead. What survives is the path that
    waited, and it was e^-RUSHED_NATS times as likely (or, having taken label 1, a little more).
    """
    rushed = 2 * RUSHED_LABELS
    batch, classes = logits.shape[1:]
    logits[:rushed] = torch.randn(rushed, batch, classes, generator=generator)
    for label in range(1, RUSHED_LABELS + 1):
        frame = 2 * (label - 1)
        logits[frame : frame + 2, :, label] += RUSHED_NATS / rushed
        start = rushed + 3 * (label - 1)
        window = torch.randn(3, batch, classes, generator=generator)
        allowed = torch.zeros(3, 1, classes, dtype=torch.bool)
        allowed[:, :, label] = True
        allowed[[0, 2], :, 0] = True
        logits[start : start + 3] = torch.where(allowed, window, -INF)


def _case_makers(long: int) -> dict[str, Callable[[str], AccuracyCase]]:
    """Name -> maker; ``long`` is the number of frames of the long inputs."""
    many = long * 2 // 25
    return {
        "plain": lambda name: _build(
            name,
            "random logits, ragged lengths",
            frames=150,
            batch=4,
            labels=40,
            ragged=True,
        ),
        "large alphabet": lambda name: _build(
            name, "random logits, 5000 classes", frames=100, classes=5000, labels=30
        ),
        "peaky": lambda name: _build(name, "logits times 100", frames=150, labels=40, scale=100.0),
        "masked": lambda name: _build(
            name, "30 % of the logits are -inf", frames=200, labels=40, masked_share=0.3
        ),
        "repeats": lambda name: _build(
            name, "runs of up to six equal labels", frames=300, labels=100, longest_run=6
        ),
        "blank-collapsed": lambda name: _build(
            name, "blank ahead by 40 nats at every frame", frames=200, labels=60, blank_bonus=40.0
        ),
        "long": lambda name: _build(
            name, f"T = {long}, S = {many}", frames=long, batch=1, labels=many
        ),
        "survivor": lambda name: _build(
            name,
            "the only surviving path was below 1e-300 of the best one",
            frames=150,
            labels=30,
            survivor=True,
        ),
        "combined": lambda name: _build(
            name,
            f"T = {long}, logits times 100, -inf, repeats and the survivor, all at once",
            frames=long,
            batch=1,
            labels=many,
            scale=100.0,
            masked_share=0.1,
            longest_run=3,
            survivor=True,
        ),
    }


CASE_NAMES = tuple(_case_makers(5000))


def make_accuracy_case(name: str, *, quick: bool = False) -> AccuracyCase:
    """The case of that name; ``quick`` shortens the long ones to 400 frames."""
    return _case_makers(400 if quick else 5000)[name](name)


def scores_of(case: AccuracyCase, scores: str) -> torch.Tensor:
    """What the loss is given: the logits, or their float32 log-softmax taken as exact."""
    return case.logits if scores == "logits" else case.logits.log_softmax(-1)


def evaluate_ours(case: AccuracyCase, scores: str) -> Result:
    """fastctc in float32: losses (N,), gradient (T, N, C) with respect to the scores given."""
    from fastctc import ctc_loss

    given = scores_of(case, scores).detach().clone().requires_grad_(True)
    losses = ctc_loss(
        given,
        case.targets,
        case.input_lengths,
        case.target_lengths,
        reduction="none",
        from_logits=scores == "logits",
    )
    (gradient,) = torch.autograd.grad(losses.sum(), given)
    return losses.detach(), gradient


def evaluate_torch(case: AccuracyCase, scores: str) -> Result:
    """torch in float32, the same way."""
    given = scores_of(case, scores).detach().clone().requires_grad_(True)
    log_probs = given.log_softmax(-1) if scores == "logits" else given
    losses = F.ctc_loss(
        log_probs, case.targets, case.input_lengths, case.target_lengths, reduction="none"
    )
    (gradient,) = torch.autograd.grad(losses.sum(), given)
    return losses.detach(), gradient


def evaluate_oracle(case: AccuracyCase, scores: str) -> Result:
    """The float64 oracle on the same float32 scores."""
    from fastctc import reference

    losses, gradient = reference.ctc_loss(
        scores_of(case, scores).double().numpy(),
        case.targets.numpy(),
        case.input_lengths.numpy(),
        case.target_lengths.numpy(),
        reduction="none",
        from_logits=scores == "logits",
    )
    return torch.from_numpy(losses), torch.from_numpy(gradient)


def evaluate_torch64(case: AccuracyCase, scores: str) -> Result:
    """torch in float64, as a second opinion on the oracle.

    The gradient is taken at the log-probabilities, where it has the value that it has at the
    logits: from there torch's own NaN at classes of -inf would spread over all of a frame.
    """
    given = scores_of(case, scores).double()
    log_probs = given.log_softmax(-1) if scores == "logits" else given
    log_probs = log_probs.detach().requires_grad_(True)
    losses = F.ctc_loss(
        log_probs, case.targets, case.input_lengths, case.target_lengths, reduction="none"
    )
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    return losses.detach(), gradient


def errors(result: Result, exact: Result, *, where_finite: bool = False) -> Errors:
    """Errors of ``result`` against the float64 ``exact``.

    With ``where_finite``, entries of the gradient that are not finite are left out.
    """
    loss_error = ((result[0].double() - exact[0]).abs() / exact[0].abs()).max()
    difference = (result[1].double() - exact[1]).abs()
    if where_finite:
        difference = difference[difference.isfinite()]
    return Errors(float(loss_error), float(difference.max()))
