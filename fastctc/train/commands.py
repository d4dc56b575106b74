"""The training commands behind ``fastctc``: fit, validate, test, predict and demo."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from fastctc.train.app import TrainCLI
from fastctc.train.arguments import expand_arguments
from fastctc.train.demo import demo
from fastctc.train.errors import TrainError


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
    ):
        warnings.filterwarnings("ignore", message)


def run(args: Sequence[str]) -> int:
    """Run the command ``args[0]``: fit, validate, test, predict or demo. Return the exit status."""
    quieten()
    try:
        if args[0] == "demo":
            return demo(args[1:])
        cli = TrainCLI(expand_arguments(args))
    except TrainError as error:
        print(f"fastctc: {error}", file=sys.stderr)
        return 2
    if cli.subcommand == "fit":
        print(f"run folder: {cli.folder}")
        print(f"transcribe with: fastctc predict --ckpt_path {cli.folder} FILE...")
    return 0
