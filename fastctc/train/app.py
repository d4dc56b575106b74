"""The training commands' parser, run folder and output, on LightningCLI."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fastctc.train.arguments import BEST, CHECKPOINTS, checkpoint_path, percent, read_checkpoint
from fastctc.train.callbacks import Bar, RunFolder, StopBetweenBatches, Transcripts
from fastctc.train.data import SpeechDataModule
from fastctc.train.decoding import make_decoder
from fastctc.train.errors import ConfigError, TrainError
from fastctc.train.module import SpeechModule

_UNKNOWN_KEY = re.compile(r"^Subcommand '\w+' does not accept option '([^']+)'")


class SentenceParser(LightningArgumentParser):
    """Says what is wrong with the settings without the usage of a hundred options first."""

    #: The command and its options.
    words: ClassVar[Sequence[str]] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None and not isinstance(cause, TrainError):
            cause = cause.__cause__ or cause.__context__
        text = " ".join((str(cause) if cause else message).split())
        if unknown := _UNKNOWN_KEY.search(text):
            # Options of the command line are refused in other words.
            values = [w.removeprefix("--config=") for w in self.words if w.startswith("--config=")]
            files = [v for v in values if not v.startswith("{")]
            where = ", ".join(files) or "the checkpoint's settings"
            text = f"{where}: there is no setting {unknown[1]}"
        print(f"fastctc: {text}", file=sys.stderr)
        print(f"fastctc {self.words[0]} --help lists the options", file=sys.stderr)
        sys.exit(2)


class TrainCLI(LightningCLI):
    """LightningCLI with a run folder, transcripts, and checkpoints that carry their settings."""

    folder: Path
    recorder: RunFolder | None

    def __init__(self, args: Sequence[str]) -> None:
        self.recorder = None
        super().__init__(
            SpeechModule,
            SpeechDataModule,
            args=list(args),
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=type("Parser", (SentenceParser,), {"words": tuple(args)}),
            parser_kwargs={"prog": "fastctc"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="ds2", help="Name of the run.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--output",
            type=str,
            default="",
            help="predict: write the transcripts here too (JSONL).",
        )
        parser.add_argument(
            "--beam_size",
            type=int,
            default=50,
            help="predict: labellings kept by the beam search; 0: each frame's best class.",
        )
        parser.add_argument(
            "--lm", type=str, default="", help="predict: ARPA file of an n-gram model, or .gz."
        )
        parser.add_argument(
            "--lm_weight", type=float, default=0.5, help="predict: weight of the n-gram model."
        )
        parser.link_arguments("data", "model.features", lambda data: data.features, "instantiate")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "early_stopping.monitor": "val/cer",
                "early_stopping.patience": 20,
                "early_stopping.strict": False,
                # The error rate is NaN where all validation texts are empty, whatever the weights.
                "early_stopping.check_finite": False,
                "checkpoint.monitor": "val/cer",
                "checkpoint.filename": Path(BEST).stem,
                "checkpoint.enable_version_counter": False,
                "trainer.num_sanity_val_steps": 0,
                "trainer.use_distributed_sampler": False,
                "trainer.enable_model_summary": False,
            }
        )

    def _parse_ckpt_path(self) -> None:
        """Do nothing: ``expand_arguments`` has put the checkpoint's settings in already."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        fit = self.subcommand == "fit"
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        callbacks: list[pl.Callback] = []
        if config.get("enable_progress_bar") is not False and sys.stdout.isatty():
            callbacks.append(Bar(refresh_rate=5))
        else:
            config["enable_progress_bar"] = False
        if fit:
            callbacks += self._fit_callbacks()
        config["callbacks"] = callbacks + list(config.get("callbacks") or [])
        if config.get("logger") in (None, True):
            config["logger"] = self._loggers() if fit else False
        self.datamodule.on_progress = _show_progress
        return self._instantiate_trainer(config, [])

    def _fit_callbacks(self) -> list[pl.Callback]:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        runs = Path(self._get(self.config, "runs"))
        self.folder = _fresh(runs / self._get(self.config, "name"), stamp)
        parser, settings = self._parser(self.subcommand), self.config[self.subcommand]
        self.model.config_text = parser.dump(settings, format="json")
        self.recorder = RunFolder(self.folder, parser.dump(settings, format="yaml"))
        checkpoint = self._get(self.config_init, "checkpoint")
        if checkpoint.dirpath is None:
            checkpoint.dirpath = str(self.folder / CHECKPOINTS)
        early_stopping = self._get(self.config_init, "early_stopping")
        # The recorder comes last: when it draws, the others have had their say.
        return [Transcripts(), StopBetweenBatches(), early_stopping, checkpoint, self.recorder]

    def _loggers(self) -> list[Any]:
        where: dict[str, Any] = {
            "save_dir": str(self.folder.parent.parent),
            "name": self.folder.parent.name,
            "version": self.folder.name,
        }
        return [CSVLogger(**where), TensorBoardLogger(**where, default_hp_metric=False)]

    def fit(self, **kwargs: Any) -> None:
        """Train in a new run folder, which goes again when nothing came of it."""
        assert self.recorder is not None
        kwargs = self._with_checkpoint(kwargs)
        self.recorder.claim()
        try:
            self.trainer.fit(**kwargs)
        except OSError as error:
            raise TrainError(f"run folder {self.folder}: training stopped ({error})") from error
        finally:
            if not self.recorder.trained:
                self.recorder.abandon()
            elif self.recorder.interrupted:
                # Here rather than in the callback: a progress bar would wrap the line.
                print(f"go on with: fastctc fit --ckpt_path {self.recorder.last}", flush=True)
        if not self.recorder.trained and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(
                "nothing was trained: trainer.max_epochs, max_steps or limit_train_batches leave "
                "no batch to do"
            )

    def _with_checkpoint(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return ``kwargs`` with the checkpoint, wherever it was named, as a file that is one."""
        if not kwargs.get("ckpt_path"):
            if self.subcommand != "fit":
                raise ConfigError(
                    f"{self.subcommand} needs a trained model: name one with --ckpt_path"
                )
            return kwargs
        runs = Path(self._get(self.config, "runs"))
        path = checkpoint_path(str(kwargs["ckpt_path"]), runs)
        read_checkpoint(path)
        return {**kwargs, "ckpt_path": str(path)}

    def validate(self, **kwargs: Any) -> None:
        """Print the figures of the validation set."""
        kwargs = self._with_checkpoint(kwargs)
        self.trainer.validate(**{**kwargs, "verbose": False})
        print_evaluations(self.model)

    def test(self, **kwargs: Any) -> None:
        """Print the figures of each test set."""
        kwargs = self._with_checkpoint(kwargs)
        self.trainer.test(**{**kwargs, "verbose": False})
        print_evaluations(self.model)

    def predict(self, **kwargs: Any) -> None:
        """Print transcripts, and write them when ``--output`` asks for it."""
        kwargs = self._with_checkpoint(kwargs)
        beam_size, lm = (self._get(self.config, name) for name in ("beam_size", "lm"))
        if beam_size:
            weight = self._get(self.config, "lm_weight")
            self.model.decoder = make_decoder(
                beam_size, lm, lm_weight=weight, timesteps=False, confidence=False
            )
        elif lm:
            raise ConfigError("--lm needs a beam: --beam_size is 0")
        batches = self.trainer.predict(**{**kwargs, "return_predictions": True}) or []
        rows: list[Any] = [row for batch in batches for row in batch]
        for row in rows:
            print(f"{row['audio']}\t{row['text']}")
        if output := self._get(self.config, "output"):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            try:
                Path(output).write_text(lines, encoding="utf-8")
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(f"--output {output}: cannot be written ({reason})") from error


def print_evaluations(model: SpeechModule) -> None:
    """Print one line per evaluated set."""
    for name, evaluation in model.evaluations.items():
        figures = evaluation.metrics()
        print(
            f"{name}: {evaluation.utterances} utterances, CER {percent(figures['cer'])}, "
            f"WER {percent(figures['wer'])}, loss {_nats(figures['loss'])}, "
            f"blank {percent(figures['blank_fraction'])}"
        )


def _nats(loss: float) -> str:
    return "n/a" if math.isnan(loss) else f"{loss:.4f} nats per label"


def _fresh(parent: Path, stamp: str) -> Path:
    """Return a folder that does not exist yet: two runs may start within a second."""
    folder, count = parent / stamp, 1
    while os.path.exists(folder):  # False where it may not be looked for; making it says why
        count += 1
        folder = parent / f"{stamp}-{count}"
    return folder


def _show_progress(name: str, done: int, total: int) -> None:
    if sys.stdout.isatty():
        print(f"\rmaking formant speech: {name} {done}/{total} ", end="", flush=True)
        if done == total:
            print()
    elif done == total:
        print(f"made formant speech: {name}, {total} utterances", flush=True)
