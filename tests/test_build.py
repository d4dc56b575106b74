"""What the compiled module says about itself, and what `fastctc info` makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastctc
from fastctc import _native, info

ROOT = Path(__file__).resolve().parent.parent

needs_module = pytest.mark.skipif(_native._C is None, reason="built without the compiled module")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_module
def test_build_info_describes_the_module():
    build = fastctc.build_info()
    assert build["compiled"] is True
    assert build["version"] == fastctc.__version__
    assert build["module_version"] == fastctc.__version__.partition("+")[0]
    assert "portable" in build["cpu_targets"]
    assert build["cuda"] == bool(build["cuda_version"]) == bool(build["cuda_archs"])


@needs_module
def test_build_info_is_a_new_dict_each_time():
    fastctc.build_info()["cpu_targets"].append("changed")
    assert "changed" not in fastctc.build_info()["cpu_targets"]


@needs_module
def test_device_list_needs_no_driver():
    devices = _native._C.cuda_devices()
    assert isinstance(devices, list)
    for device in devices:
        assert device["name"]
        assert device["memory"] > 0
        assert len(device["capability"]) == 2
    if devices:
        assert _native._C.cuda_driver_version() > 0


@needs_module
def test_runnable_targets_are_among_those_compiled_in():
    compiled = fastctc.build_info()["cpu_targets"]
    runnable = _native._C.cpu_targets()
    assert runnable[-1] == "portable"
    assert [name for name in compiled if name in runnable] == runnable


@needs_module
def test_library_variable_names_the_module_to_load():
    path = _native._C.__file__
    code = "from fastctc import _native; print(_native._C.__file__)"
    assert run_python(code, FASTCTC_LIBRARY=path).stdout.strip() == path


def test_library_variable_with_a_wrong_path_is_an_error():
    done = run_python("import fastctc", FASTCTC_LIBRARY="/nowhere/_C.so")
    assert done.returncode != 0
    assert "FASTCTC_LIBRARY is '/nowhere/_C.so'" in done.stderr


def test_a_module_that_fails_to_load_is_not_taken_for_a_missing_one(tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    done = run_python("import fastctc", FASTCTC_LIBRARY=str(broken))
    assert done.returncode != 0
    assert "ImportError" in done.stderr


def test_info_prints_what_is_installed(capsys):
    assert info.main([]) == 0
    text = capsys.readouterr().out
    assert f"fastctc       {fastctc.__version__}" in text
    for word in ("compiled", "torch", "GPU", "[reference]", "[train]"):
        assert word in text


def test_info_as_json(capsys):
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["build"]["version"] == fastctc.__version__
    assert isinstance(found["missing"], list)


def test_info_with_a_cpu_target_that_is_not_there():
    if _native._C is None:
        pytest.skip("built without the compiled module")
    done = run_python("from fastctc import info; info.main([])", FASTCTC_CPU_TARGET="z80")
    assert done.returncode == 0, done.stderr
    assert "z80" in done.stdout


@pytest.fixture
def found() -> dict:
    """A complete installation with one GPU that works."""
    return {
        "build": {
            "compiled": True,
            "version": "1.2.0+cu130",
            "module_version": "1.2.0",
            "cuda": True,
            "cuda_version": "13.0",
            "cuda_archs": ["80", "90", "120", "120+PTX"],
        },
        "cpu": {"error": None},
        "torch": {"cuda_available": True},
        "gpus": [{"name": "GPU", "memory": "1", "capability": "9.0", "driver": "1"}],
        "devices": [{"name": "GPU", "capability": (9, 0)}],
        "extras": {"train": {"rich": "13"}},
    }


def test_nothing_is_missing_from_a_complete_installation(found):
    assert info.missing(found) == []


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("build", {"module_version": "1.1.0"}, "of version 1.1.0"),
        ("build", {"compiled": False}, "slow reference serves"),
        ("build", {"cuda": False}, "FASTCTC_CUDA=1 pip install"),
        ("build", {"cuda_archs": ["100"]}, 'TORCH_CUDA_ARCH_LIST="9.0"'),
        ("cpu", {"error": "no z80 here"}, "no z80 here"),
        ("torch", {"cuda_available": False}, "this torch cannot use it"),
        ("extras", {"train": {"rich": None}}, "pip install 'fastctc[train]'"),
    ],
)
def test_info_says_what_is_missing_and_how_to_get_it(found, part, change, expected):
    found[part].update(change)
    assert any(expected in sentence for sentence in info.missing(found))


def test_info_notices_a_driver_that_is_too_old(found):
    found["devices"] = []
    assert any("does not serve CUDA 13.0" in sentence for sentence in info.missing(found))


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((8, 6), ["80"], True),
        ((8, 0), ["86"], False),
        ((9, 0), ["80"], False),
        ((9, 0), ["80+PTX"], True),
        ((7, 5), ["80+PTX"], False),
        ((9, 0), ["90a"], True),
        ((10, 3), ["100a"], False),
        ((10, 3), ["100f"], True),
        ((12, 1), ["100f"], False),
        ((10, 0), ["90a+PTX"], False),
        ((9, 0), [], False),
    ],
)
def test_which_gpu_code_runs_where(capability, archs, expected):
    assert info.runs_on(capability, archs) is expected
