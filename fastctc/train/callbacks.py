"""What happens around training: the run folder, sample transcripts, a Ctrl-C that loses nothing."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

from fastctc.train.arguments import CHECKPOINTS, LAST, percent
from fastctc.train.curves import draw_curves, keep_earlier, read_metrics
from fastctc.train.errors import ConfigError
from fastctc.train.module import SpeechModule

CONFIG = "config.yaml"


class RunFolder(pl.Callback):
    """Keeps what a run is remembered by: settings, last checkpoint, and curves however it ends.

    The last checkpoint is written between epochs, when schedules have seen the validation: a run
    resumed from it goes on exactly. On Ctrl-C it is written where training stands.

    Args:
        folder: The run folder, which also holds logs and checkpoints.
        config_text: The settings as YAML.
    """

    def __init__(self, folder: Path, config_text: str) -> None:
        self.folder = folder
        self.last = folder / CHECKPOINTS / LAST
        self.config_text = config_text
        self.curves: Path | None = None
        #: Whether the folder holds anything worth keeping: a batch was trained on, or a checkpoint.
        self.trained = False
        #: Whether Ctrl-C stopped training and the last checkpoint says where.
        self.interrupted = False
        self._made: list[Path] = []

    def claim(self) -> None:
        """Make the folder and write the settings into it; ConfigError says why that fails."""
        # os.path: a folder that may not be looked into counts as absent, and mkdir says why.
        self._made = [p for p in (self.folder, *self.folder.parents) if not os.path.exists(p)]
        try:
            self.folder.mkdir(parents=True)
            (self.folder / CONFIG).write_text(self.config_text, encoding="utf-8")
        except OSError as error:
            self.abandon()
            reason = error.strerror or error
            raise ConfigError(f"run folder {self.folder}: cannot be written ({reason})") from error

    def abandon(self) -> None:
        """Remove the folder, and those above it that ``claim`` made and that are empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in self._made[1:]:
                folder.rmdir()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path:
            previous = Path(trainer.ckpt_path).resolve().parent.parent
            keep_earlier(previous, self.folder, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        self.trained = not trainer.fast_dev_run  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step:
            self._save(trainer)
            # Going on from the end of an epoch's batches may leave a validation only.
            self.trained = self.last.is_file()

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.last)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if trainer.state.fn != "fit":
            return
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step:
            self._save(trainer)
            self.interrupted = self.last.is_file()
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.trained:
            return
        assert isinstance(pl_module, SpeechModule)
        for logger in trainer.loggers:
            logger.save()
        # The last step is logged however far trainer.log_every_n_steps is from it.
        logged = read_metrics(self.folder).get("train/loss", ([-1.0], []))[0]
        if pl_module.newest_step > logged[-1]:
            newest = {name: float(value) for name, value in pl_module.newest.items()}
            for logger in trainer.loggers:
                logger.log_metrics(newest, step=pl_module.newest_step)
                logger.save()
        if read_metrics(self.folder):
            self.curves = draw_curves(self.folder)


def _figure(loss: float) -> str:
    """Return a loss for people; n/a where no utterance had one."""
    return "n/a" if math.isnan(loss) else f"{loss:.3f}"


class StopBetweenBatches(pl.Callback):
    """Lets Ctrl-C stop before the next training batch, where a checkpoint is exact.

    A validation in progress is finished first. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not in the main thread: Ctrl-C is the caller's business there
            self._previous = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        # Here rather than at a batch's end, where its figures have not been logged yet.
        if self.asked:
            raise KeyboardInterrupt


class Bar(RichProgressBar):
    """A progress bar on one line: epochs counted from 1, loss and blank fraction."""

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs or 0
        return f"epoch {current_epoch + 1}" + (f"/{last}" if last > 0 else "")

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        short = {"train/loss": "loss", "train/blank_fraction": "blank"}
        return {short[key]: value for key, value in metrics.items() if key in short}


class Transcripts(pl.Callback):
    """Prints one line of figures and some transcripts after each validation.

    Args:
        count: How many transcripts.
        show: Prints.
    """

    def __init__(self, count: int = 3, show: Callable[[str], None] = print) -> None:
        self.count = count
        self.show = show
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SpeechModule)
        if trainer.sanity_checking or "val" not in pl_module.evaluations:
            return
        evaluation = pl_module.evaluations["val"]
        figures = evaluation.metrics()
        where = f"epoch {trainer.current_epoch + 1}"
        if trainer.state.fn == "fit":
            where += f" | {time.perf_counter() - self._start:.0f} s"
            train = trainer.callback_metrics.get("train/loss")
            where += "" if train is None else f" | loss {_figure(float(train))}"
        lines = [
            f"{where} | validation loss {_figure(figures['loss'])}  CER {percent(figures['cer'])}  "
            f"WER {percent(figures['wer'])}  blank {figures['blank_fraction']:.0%}"
        ]
        for reference, hypothesis in evaluation.samples[-self.count :]:
            mark = "=" if reference == hypothesis else "~"
            lines += [f"    said   {reference}", f"    {mark} heard {hypothesis}"]
        # In one go: above a progress bar each print draws the bar again.
        self.show("\n".join(lines))
