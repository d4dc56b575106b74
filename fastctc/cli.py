"""The ``fastctc`` command. What it lists works with the core install; training needs an extra."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

_HELP = """\
usage: fastctc COMMAND [OPTIONS]

commands:
  demo       train the small DeepSpeech2 on the built-in formant speech (under three minutes)
  fit        train:       fastctc fit --config deepspeech2-small.yaml
  validate   evaluate:    fastctc validate --ckpt_path RUN_FOLDER
  test       the same on the test sets
  transcribe write down audio files:  fastctc transcribe --checkpoint RUN_FOLDER FILE...
  predict    the same with the options of fit:  fastctc predict --ckpt_path RUN_FOLDER FILE...
  lm         estimate an n-gram model for the decoders:  fastctc lm TEXT -o MODEL.arpa
  info       what is installed, what was compiled in, what this machine offers

fastctc COMMAND --help lists a command's options; fastctc --version prints the version.
demo, fit, validate, test, transcribe and predict need the train extra: pip install 'fastctc[train]'
"""

_TRAINING = ("demo", "fit", "validate", "test", "transcribe", "predict")
# What shells expect of a program that Ctrl-C ended.
_INTERRUPTED = 130
# What the train extra brings, by the names they are imported as.
_TRAIN_MODULES = ("lightning", "jsonargparse", "jiwer", "soundfile", "matplotlib", "rich",
                  "tensorboard")  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; ``args`` defaults to the command line. Return the exit status."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    command = words[0]
    if command == "--version":
        from fastctc import __version__

        print(f"fastctc {__version__}")
        return 0
    if command == "info":
        from fastctc import info

        return info.main(words[1:])
    if command == "lm":
        from fastctc import estimate

        return estimate.main(words[1:])
    if command not in _TRAINING:
        print(f"fastctc: no command {command!r}; see fastctc --help", file=sys.stderr)
        return 2
    if missing := [m for m in _TRAIN_MODULES if importlib.util.find_spec(m) is None]:
        print(
            f"fastctc: {command} needs {', '.join(missing)}, which the train extra brings: "
            "pip install 'fastctc[train]'",
            file=sys.stderr,
        )
        return 2
    try:
        from fastctc.train.commands import run

        return run(words)
    except KeyboardInterrupt:
        print("fastctc: interrupted", file=sys.stderr)
        return _INTERRUPTED
