"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import nn

from fastctc.train.errors import ConfigError

Algorithm = Literal["adamw", "adam"]
Schedule = Literal["constant", "plateau", "cosine", "exponential", "onecycle"]

_MONITOR = "val/cer"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How the weights move.

    Args:
        algorithm: ``adamw`` or ``adam``.
        lr: Highest learning rate.
        weight_decay: As the algorithm defines it.
        betas: Decay of the running moments.
        schedule: ``constant``; ``plateau`` multiplies by ``factor`` when val/cer has not improved
            for ``patience`` epochs; ``exponential`` multiplies by ``factor`` after each epoch;
            ``cosine`` falls to 1 % of ``lr`` at the end of training; ``onecycle`` rises from a
            tenth of ``lr`` and falls to a thousandth of it.
        warmup: Share of all steps over which the rate rises (cosine and onecycle).
        factor: See ``schedule``.
        patience: See ``schedule``.
    """

    algorithm: Algorithm = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "plateau"
    warmup: float = 0.05
    factor: float = 0.5
    patience: int = 3

    def __post_init__(self) -> None:
        for name, allowed in (("algorithm", Algorithm), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(
                    f"optim.{name} is {getattr(self, name)!r}; there are "
                    + ", ".join(get_args(allowed))
                )
        if not self.lr > 0:
            raise ConfigError(f"optim.lr is {self.lr}: it must be above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"optim.weight_decay is {self.weight_decay}: it must not be negative")
        if not 0 < self.warmup < 1:
            raise ConfigError(f"optim.warmup is {self.warmup}: it must lie between 0 and 1")
        if not 0 < self.factor < 1:
            raise ConfigError(f"optim.factor is {self.factor}: it must lie between 0 and 1")
        if self.patience < 0:
            raise ConfigError(f"optim.patience is {self.patience}: it must not be negative")


def build_optimizer(
    config: OptimConfig, parameters: Iterable[nn.Parameter], total_steps: int
) -> dict[str, Any]:
    """Return what ``configure_optimizers`` returns: the optimiser and its schedule.

    Args:
        config: Which ones.
        parameters: What to optimise.
        total_steps: Optimiser steps of the whole training, for cosine and onecycle.

    Raises:
        ConfigError: The schedule needs an end and ``total_steps`` is not a positive number.
    """
    algorithm = torch.optim.AdamW if config.algorithm == "adamw" else torch.optim.Adam
    optimizer = algorithm(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    if config.schedule == "constant":
        return {"optimizer": optimizer}
    if config.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=config.factor, patience=config.patience
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": plateau,
                "monitor": _MONITOR,
                "interval": "epoch",
                # A run resumed from its best checkpoint, which is written before the schedule has
                # seen the error rate, does without that one.
                "strict": False,
            },
        }
    if config.schedule == "exponential":
        exponential = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=config.factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": exponential, "interval": "epoch"},
        }
    if not 0 < total_steps < math.inf:
        raise ConfigError(
            f"optim.schedule is {config.schedule!r}, which needs to know where training ends: set "
            "trainer.max_epochs or trainer.max_steps"
        )
    # A run that is resumed with fewer epochs goes past the end: it stays on the last value.
    total = int(total_steps)
    rise = _onecycle if config.schedule == "onecycle" else _cosine
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rise(min(step / total, 1.0), config.warmup)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _onecycle(progress: float, warmup: float) -> float:
    if progress < warmup:
        return _anneal(0.1, 1.0, progress / warmup)
    return _anneal(1.0, 1e-3, (progress - warmup) / (1 - warmup))


def _cosine(progress: float, warmup: float) -> float:
    if progress < warmup:
        return 0.01 + 0.99 * progress / warmup
    return _anneal(1.0, 0.01, (progress - warmup) / (1 - warmup))
