"""The training commands behind ``fastctc``: fit, validate, test, predict, transcribe and demo."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from fastctc.train.app import TrainCLI
from fastctc.train.arguments import expand_arguments
from fastctc.train.demo import demo
from fastctc.train.errors import TrainError
from fastctc.train.transcribe import transcribe


def quieten() -> None:
    """Silence remarks of the libraries that say nothing about the run at hand."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LightningCLI's args parameter.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*dataloader is not resumable.*",  # the data module resumes it
        r"\s*By default only one JsonargparseDeprecationWarning.*",
        r"\s*``instantiate_classes`` was deprecated.*",
        ".*training_step. returned .None.*",  # a skipped batch, which has been named
        # Evaluating needs none of fit's callbacks; a resumed run has a folder of its own.
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from.*",
        ".*Experiment logs directory .* is not empty.*",  # the run folder, holding its settings
        # A run that ended before its first validation. Another key may be a slip of the user's.
        ".*ModelCheckpoint.monitor='val/cer'.. could not find the monitored key.*",
    ):
        warnings.filterwarnings("ignore", message)


def run(args: Sequence[str]) -> int:
    """Run the command ``args[0]``, one of those above. Return the exit status.

    Raises:
        KeyboardInterrupt: Ctrl-C, once what can be kept of the run is kept.
    """
    quieten()
    try:
        if args[0] == "demo":
            return demo(args[1:])
        if args[0] == "transcribe":
            return transcribe(args[1:])
        cli = TrainCLI(expand_arguments(args))
    except TrainError as error:
        print(f"fastctc: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        # Lightning tidies up after Ctrl-C and then exits as after an error.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    if cli.subcommand == "fit" and cli.folder.is_dir():
        print(f"run folder: {cli.folder}")
        print(f"transcribe with: fastctc transcribe --checkpoint {cli.folder} FILE...")
    return 0
