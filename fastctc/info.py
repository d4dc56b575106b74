"""`fastctc info`: what is installed, what was compiled in, what this machine offers, what lacks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fastctc import _native
from fastctc._build import build_info

# Distributions that tell whether an extra is there; the part of torch is taken for granted.
EXTRAS = {
    "reference": ("numba",),
    "train": (
        "lightning",
        "jsonargparse",
        "jiwer",
        "soundfile",
        "matplotlib",
        "rich",
        "tensorboard",
    ),
}


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, dict[str, str | None]]:
    return {
        extra: {name: _version_of(name) for name in distributions}
        for extra, distributions in EXTRAS.items()
    }


def _cpu() -> dict[str, Any]:
    native = _native._C
    if native is None:
        return {"target": None, "available": [], "error": None}
    try:
        return {"target": native.cpu_target(), "available": native.cpu_targets(), "error": None}
    except ValueError as error:  # FASTCTC_CPU_TARGET names one that this machine cannot run
        return {"target": None, "available": native.cpu_targets(), "error": str(error)}


def _nvidia_smi() -> list[dict[str, str]]:
    """Asks the driver's own tool, which answers also where neither torch nor we have CUDA."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = ["--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    keys = ("name", "memory", "capability", "driver")
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def runs_on(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    """Says whether code built for `archs` runs on a GPU.

    Args:
        capability: the GPU's compute capability, such as (9, 0).
        archs: as in `build_info()["cuda_archs"]`. "86" is machine code, which runs on the same
            major version and an equal or higher minor one; "80+PTX" is compiled by the driver
            for any equal or newer GPU; a letter, as in "90a", ties either to that very GPU.
    """
    have = 10 * capability[0] + capability[1]
    for arch in archs:
        name, _, ptx = arch.partition("+")
        number = int(name.rstrip("af"))
        if name[-1] == "a":
            fits = have == number
        elif name[-1] == "f" or not ptx:
            fits = have // 10 == number // 10 and have >= number
        else:
            fits = have >= number
        if fits:
            return True
    return False


def collect() -> dict[str, Any]:
    """Gathers everything `fastctc info` prints, as plain values that JSON can hold."""
    import torch

    native = _native._C
    return {
        "build": build_info(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cuda_available": torch.cuda.is_available(),
            "threads": torch.get_num_threads(),
        },
        "numpy": _version_of("numpy"),
        "cpu": _cpu(),
        "gpus": _nvidia_smi(),
        "devices": native.cuda_devices() if native is not None else [],
        "extras": _extras(),
    }


def missing(found: dict[str, Any]) -> list[str]:
    """Lists, in sentences, what this installation lacks and how to get it."""
    return [*_missing_in_build(found), *_missing_for_gpu(found), *_missing_extras(found)]


def _missing_in_build(found: dict[str, Any]) -> list[str]:
    build = found["build"]
    if not build["compiled"]:
        others = _native.built_for_other_python()
        if others:
            return [
                f"The compiled module is for another Python ({', '.join(others)}): "
                "run `pip install --force-reinstall --no-deps fastctc` with this one."
            ]
        return [
            "The compiled module is absent, so the slow reference serves: run `pip install .` in "
            "the source tree without FASTCTC_BUILD=none, with a C++ compiler at hand."
        ]
    sentences = []
    if build["module_version"] != build["version"].partition("+")[0]:
        sentences.append(
            f"The compiled module is of version {build['module_version']}, the Python files are "
            f"of {build['version']}: run `pip install .` again."
        )
    if found["cpu"]["error"]:
        sentences.append(f"{found['cpu']['error']} (set by FASTCTC_CPU_TARGET)")
    return sentences


def _missing_for_gpu(found: dict[str, Any]) -> list[str]:
    build, sentences = found["build"], []
    if found["gpus"] and not found["torch"]["cuda_available"]:
        sentences.append(
            "There is a GPU, but this torch cannot use it: install a CUDA build of torch that "
            "the driver serves."
        )
    if found["gpus"] and build["compiled"] and not build["cuda"]:
        sentences.append(
            "There is a GPU, but this build has no CUDA library: put nvcc on PATH (or set "
            "CUDA_HOME) and run `FASTCTC_CUDA=1 pip install .`."
        )
    if found["gpus"] and build["cuda"] and not found["devices"]:
        sentences.append(
            f"The driver does not serve CUDA {build['cuda_version']}: update it, or build with "
            "an older toolkit."
        )
    for device in found["devices"]:
        major, minor = device["capability"]
        if not runs_on((major, minor), build["cuda_archs"]):
            sentences.append(
                f"This build has no code for {device['name']} ({major}.{minor}): run "
                f'`TORCH_CUDA_ARCH_LIST="{major}.{minor}" pip install .`.'
            )
    return sentences


def _missing_extras(found: dict[str, Any]) -> list[str]:
    sentences = []
    for extra, versions in found["extras"].items():
        absent = [name for name, version in versions.items() if version is None]
        if absent:
            sentences.append(
                f"The extra [{extra}] lacks {', '.join(absent)}: "
                f"run `pip install 'fastctc[{extra}]'`."
            )
    return sentences


def _build_lines(build: dict[str, Any]) -> list[tuple[str, str]]:
    if not build["compiled"]:
        return [("compiled", "no")]
    kind = ", ".join([build["build_type"] or "no build type", *build["sanitizers"]])
    lines = [("compiled", f"yes, by {build['compiler']} for {build['platform']} ({kind})")]
    if build["cuda"]:
        archs = " ".join(build["cuda_archs"])
        return [*lines, ("CUDA library", f"CUDA {build['cuda_version']} for {archs}")]
    return [*lines, ("CUDA library", "not built")]


def render(found: dict[str, Any]) -> str:
    """Formats what `collect` found as lines of text."""
    torch, cpu = found["torch"], found["cpu"]
    gpu_torch = f"CUDA {torch['cuda']}" if torch["cuda"] else "without CUDA"
    lines = [
        ("fastctc", found["build"]["version"]),
        *_build_lines(found["build"]),
        ("CPU target", f"{cpu['target'] or 'none'} (available: {', '.join(cpu['available'])})"),
        ("Python", found["python"]),
        ("torch", f"{torch['version']}, {gpu_torch}, {torch['threads']} threads"),
        ("numpy", found["numpy"] or "absent"),
        ("system", f"{found['platform']}, {found['cores']} cores"),
    ]
    if not cpu["available"]:
        lines = [line for line in lines if line[0] != "CPU target"]
    for gpu in found["gpus"]:
        lines.append(
            (
                "GPU",
                f"{gpu['name']}, {gpu['memory']}, capability {gpu['capability']}, "
                f"driver {gpu['driver']}",
            )
        )
    if not found["gpus"]:
        for device in found["devices"]:
            major, minor = device["capability"]
            lines.append(("GPU", f"{device['name']}, capability {major}.{minor}"))
    if not found["gpus"] and not found["devices"]:
        lines.append(("GPU", "none found"))
    for extra, versions in found["extras"].items():
        there = [f"{name} {version}" for name, version in versions.items() if version]
        lines.append((f"[{extra}]", ", ".join(there) or "not installed"))
    text = [f"{label:<13} {value}" for label, value in lines]
    return "\n".join([*text, *(f"\n{sentence}" for sentence in missing(found))])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; `--json` prints it for programs. Always returns 0."""
    parser = argparse.ArgumentParser(prog="fastctc info", description=(__doc__ or "").strip())
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    found = collect()
    if options.json:
        print(json.dumps({**found, "missing": missing(found)}, indent=2))
    else:
        print(render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
