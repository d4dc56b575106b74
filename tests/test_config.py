"""The process-wide switches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastctc import config
from fastctc._native import _C


def in_new_process(code: str, **variables: str) -> str:
    """Run `code` with these environment variables; its output, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return (done.stdout or done.stderr.strip().splitlines()[-1]).strip()


def show(switch: str, **variables: str) -> str:
    return in_new_process(f"import fastctc; print(fastctc.config.{switch})", **variables)


def test_defaults_and_assignment() -> None:
    assert config.validate_device_inputs is False
    assert config.max_workspace_mb == 256
    assert config.max_kept_output_mb == 512
    try:
        config.validate_device_inputs = True
        assert config.validate_device_inputs is True
    finally:
        config.validate_device_inputs = False


@pytest.mark.parametrize("switch", ["max_workspace_mb", "max_kept_output_mb"])
def test_limits_reach_the_library(switch: str, needs_library: None) -> None:
    before = getattr(config, switch)
    try:
        setattr(config, switch, 17)
        assert getattr(_C, switch)() == 17
    finally:
        setattr(config, switch, before)
    assert getattr(_C, switch)() == before


@pytest.mark.parametrize(
    ("switch", "value", "sentence"),
    [
        ("validate_device_inputs", 1, "must be True or False"),
        ("validate_device_inputs", None, "must be True or False"),
        ("validate_device_inputs", "maybe", "got 'maybe'"),
        ("max_workspace_mb", 0, "from 1 to"),
        ("max_workspace_mb", -5, "got -5"),
        ("max_workspace_mb", 2.5, "got 2.5"),
        ("max_workspace_mb", True, "got True"),
        ("max_workspace_mb", None, "got None"),
        ("max_workspace_mb", 2**70, "from 1 to"),
        ("max_kept_output_mb", -1, "from 0 to"),
        ("max_kept_output_mb", False, "got False"),
    ],
)
def test_refuses_other_values(switch: str, value: object, sentence: str) -> None:
    before = getattr(config, switch)
    with pytest.raises(ValueError, match=rf"fastctc\.config\.{switch} .*{sentence}"):
        setattr(config, switch, value)
    assert getattr(config, switch) == before


def test_refuses_other_names() -> None:
    with pytest.raises(AttributeError, match=r"no switch 'max_workspace'.*max_workspace_mb"):
        config.max_workspace = 3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no switch 'valid'"):
        config.valid  # type: ignore[attr-defined]  # noqa: B018


def test_environment_variables() -> None:
    assert show("max_workspace_mb", FASTCTC_MAX_WORKSPACE_MB="33") == "33"
    assert show("max_kept_output_mb", FASTCTC_MAX_KEPT_OUTPUT_MB="0") == "0"
    assert show("validate_device_inputs", FASTCTC_VALIDATE_DEVICE_INPUTS="1") == "True"
    assert show("validate_device_inputs", FASTCTC_VALIDATE_DEVICE_INPUTS="Off") == "False"
    message = show("max_workspace_mb", FASTCTC_MAX_WORKSPACE_MB="lots")
    assert message.startswith("ValueError: FASTCTC_MAX_WORKSPACE_MB must be")
    message = show("validate_device_inputs", FASTCTC_VALIDATE_DEVICE_INPUTS="2")
    assert message.startswith("ValueError: FASTCTC_VALIDATE_DEVICE_INPUTS must be")


def test_variable_counts_from_the_first_call(needs_library: None) -> None:
    code = (
        "import fastctc, torch; from fastctc._native import _C;"
        "fastctc.ctc_loss(torch.zeros(3, 1, 4), torch.ones(1), [3], [1]);"
        "print(_C.max_workspace_mb())"
    )
    assert in_new_process(code, FASTCTC_MAX_WORKSPACE_MB="21") == "21"
    message = in_new_process(code, FASTCTC_MAX_WORKSPACE_MB="-1")
    assert message.startswith("ValueError: FASTCTC_MAX_WORKSPACE_MB must be")


def test_variable_bounds_what_is_kept_from_the_first_result(needs_library: None) -> None:
    code = (
        "import fastctc, torch; from fastctc._native import _C;"
        "fastctc.spectrogram_norm(torch.zeros(1, 2048, 1024)); print(_C.kept_output_bytes() >> 20)"
    )
    assert in_new_process(code) == "8"
    assert in_new_process(code, FASTCTC_MAX_KEPT_OUTPUT_MB="7") == "0"
