"""What the command line leaves to us: presets, checkpoints by name, files to transcribe."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fastctc.train.errors import ConfigError

#: Names inside a run folder.
CHECKPOINTS, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"

# What the settings of the fit that made a checkpoint say to another command.
_SHARED_SETTINGS = ("seed_everything", "model", "data")
_NO_VALUE = ("-h", "--help", "--print_config")


def presets() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("fastctc.train") / "configs"
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset_path(name: str) -> str:
    """Return the file behind ``--config``: the file of that name, else the preset.

    Raises:
        ConfigError: There is neither.
    """
    if Path(name).is_file():
        return name
    for preset in presets():
        if name in (preset, preset.removesuffix(".yaml")):
            return str(resources.files("fastctc.train") / "configs" / preset)
    raise ConfigError(
        f"--config {name}: no such file, and no such preset; presets: {', '.join(presets())}"
    )


def checkpoint_path(value: str, runs: Path, option: str = "--ckpt_path") -> Path:
    """Return the checkpoint that ``value`` names: a file, a run folder, ``last`` or ``best``.

    ``last`` and ``best`` are those of the newest run below ``runs``; a run folder stands for its
    best checkpoint, or its last one without a best. Errors name ``option``.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    path = Path(value)
    if value in ("last", "best"):
        found = sorted(runs.glob(f"**/{CHECKPOINTS}/{LAST}"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ConfigError(f"{option} {value}: no {CHECKPOINTS}/{LAST} below {runs}/")
        path = found[-1] if value == "last" else found[-1].with_name(BEST)
    elif path.is_dir():
        path = path / CHECKPOINTS / BEST
        if not path.is_file():  # no validation has chosen one
            path = path.with_name(LAST)
    if not path.is_file():
        raise ConfigError(f"{option} {value}: no such checkpoint ({path})")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; ConfigError says that the file is none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch and pickle raise many kinds, and say nothing to a person
        raise ConfigError(f"{path}: is not a checkpoint") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ConfigError(f"{path}: is not a checkpoint of a training run")
    return content


def checkpoint_settings(checkpoint: Path, command: str) -> str:
    """Return, as JSON for ``--config``, the settings that a checkpoint carries for ``command``.

    Raises:
        ConfigError: The file is no checkpoint, or carries none.
    """
    text = read_checkpoint(checkpoint).get("fastctc_config")
    if not text:
        raise ConfigError(f"{checkpoint}: carries no settings; name them with --config")
    settings = json.loads(text)
    if command == "fit":
        settings.pop("ckpt_path", None)
    else:
        settings = {k: settings[k] for k in _SHARED_SETTINGS if k in settings}
    return json.dumps(settings)


def expand_arguments(args: Sequence[str]) -> list[str]:
    """Return ``args`` as LightningCLI understands them.

    Preset names become paths; ``--ckpt_path last``, ``best`` or a run folder becomes a file;
    without ``--config`` the settings inside the checkpoint are used; what ``predict`` is given
    without an option is what it transcribes.

    Raises:
        ConfigError: A preset or checkpoint does not exist, a word belongs to no option, or nothing
            says what to train.
    """
    command, *rest = args
    options, free = _split(rest)
    if free and command != "predict":
        raise ConfigError(f"{command} takes options only; {' '.join(free)!r} belongs to none")
    given = dict(options)
    asks = any(name.split("=")[0] in _NO_VALUE for name in given)
    if command == "fit" and not asks and not _names_settings(given):
        raise ConfigError(
            "fit needs --config, a file or one of the presets "
            f"{', '.join(presets())}; or --ckpt_path to go on with a run"
        )
    runs = Path(given.get("--runs") or "runs")
    out: list[str] = []
    for option, value in options:
        if option in ("-c", "--config") and value is not None:
            option, value = "--config", preset_path(value)
        elif option == "--ckpt_path" and value not in (None, "null"):
            path = checkpoint_path(str(value), runs)
            if not given.keys() & {"-c", "--config"}:
                # First, so that what the command line says comes after it and wins.
                out.insert(0, f"--config={checkpoint_settings(path, command)}")
            value = str(path)
        out.append(option if value is None else f"{option}={value}")
    if free:
        out.append(f"--data.predict={json.dumps(free)}")
    return [command, *out]


def _names_settings(given: dict[str, str | None]) -> bool:
    return bool(given.keys() & {"-c", "--config"}) or given.get("--ckpt_path") not in (None, "null")


def _split(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Return (options with their values, words that belong to no option)."""
    options: list[tuple[str, str | None]] = []
    free: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            free.append(word)
        elif "=" in word:
            name, value = word.split("=", 1)
            options.append((name, value))
        elif word in _NO_VALUE or not rest:
            options.append((word, None))
        else:
            options.append((word, rest.pop(0)))
    return options, free


def percent(rate: float) -> str:
    """Return a rate for people; "-" where nothing was measured."""
    return "-" if math.isnan(rate) else f"{rate:.2%}"
