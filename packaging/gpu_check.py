"""Everything that needs a GPU in one command: build, tests, sanitizers, benchmarks.

    python packaging/gpu_check.py --out DIR       (make gpu-check OUT=DIR)

Needs a Python with torch and pytest, nvcc, a C++ compiler and CMake; nothing is installed, and
nothing fetched. The library is built for the GPU at hand into build/gpu-check. A stage that fails
does not keep the later ones from running, and one that is slow is cut off in time for them. DIR
gets gpu-check.json (the environment, each stage with its outcome), gpu-check.log (what they
printed) and what the benchmarks wrote.

To add a stage, add it to `stages`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_BUILD = _ROOT / "build" / "gpu-check"
_SECONDS = 470  # eight minutes, less what starting and finishing take

# Tests of values that go to the GPU and back. The contract's tests hold every sentence against
# those of torch's loss on the CPU, and are not among them.
_THROUGH_GPU = ("", "_autograd", "_accuracy", "_limits", "_fuzz", "_compile")


@dataclass
class Stage:
    """One process. Where it needs the build, it runs with that, and not without."""

    name: str
    command: Sequence[str | Path]
    seconds: int
    least: int = 10
    """Seconds that the stages before it leave it, however long they would like to run."""
    environment: dict[str, str] = field(default_factory=dict)
    needs_build: bool = True


def find_tool(name: str) -> str | None:
    """A tool beside this Python, on PATH, or in the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [f"{home}/{sub}" for home in homes if home for sub in ("bin", "compute-sanitizer")]
    first = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join([*first, *folders]))


def why_impossible() -> str | None:
    """A sentence where there is no GPU to check on, else None."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch"
    import torch

    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    missing = [name for name in ("nvcc", "cmake") if find_tool(name) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be found on PATH or in the CUDA toolkit"
    return None


def environment() -> dict[str, Any]:
    """What the figures are of."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    smi = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "driver": smi.splitlines()[0] if smi else None,
        "nvcc": (re.findall(r"V([\d.]+)", _output([find_tool("nvcc"), "--version"])) or [None])[-1],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version_of("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "commit": _output(["git", "-C", str(_ROOT), "rev-parse", "HEAD"]) or None,
        "changed_files": _output(["git", "-C", str(_ROOT), "status", "--porcelain"]).splitlines(),
    }


def _output(command: Sequence[str | None]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, TypeError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version_of(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def pybind11_option() -> str:
    """Where CMake finds pybind11: its package, or the headers that torch brings."""
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        if int(pybind11.__version__.partition(".")[0]) >= 3:
            return f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return f"-DFASTCTC_PYBIND11_INCLUDE={Path(spec.origin).parent / 'include'}"


def build_commands(arch: str, folder: Path = _BUILD) -> list[list[str]]:
    """Configure for one architecture, such as "90", and build the module.

    The machine has the GPU to itself, and time is short: all its CPUs compile.
    """
    cmake = find_tool("cmake") or "cmake"
    configure = [cmake, "-S", str(_ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DFASTCTC_CUDA=1", f"-DCMAKE_CUDA_ARCHITECTURES={arch}-real"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", pybind11_option()]
    if nvcc := find_tool("nvcc"):
        configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    if ninja := find_tool("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    build = [cmake, "--build", str(folder), "--target", "_C", "-j", str(os.cpu_count() or 1)]
    return [configure, build]


def built_module(folder: Path = _BUILD) -> Path:
    """Where the build leaves the module for this Python."""
    return folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def stages(out: Path, arch: str, quick: bool) -> list[Stage]:
    """What is run, in this order."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=25"]
    configure, build = build_commands(arch)
    marked = [path for path in sorted((_ROOT / "tests").glob("test_*.py")) if _is_for_gpu(path)]
    # Most of their time goes into compiling, so they have a stage of their own.
    triton = [path for path in marked if "triton" in path.name]
    marked = [path for path in marked if path not in triton]
    bench = [python, "-m", "benchmarks.bench_ctc_loss_cuda", "--out", out / "ctc-loss-cuda.json"]
    found = [
        Stage("configure", configure, 60, needs_build=False),
        Stage("build", build, 180, needs_build=False),
        Stage("tests on the GPU", [*pytest, "-m", "gpu", *marked], 100, 45),
        Stage("benchmark of the loss", [*bench, *["--quick"] * quick], 170, 90),
    ]
    bench = [python, "-m", "benchmarks.bench_forced_align_cuda"]
    bench += ["--out", out / "forced-align-cuda.json", *["--quick"] * quick]
    found.append(Stage("benchmark of forced alignment", bench, 40, 15))
    bench = [python, "-m", "benchmarks.bench_beam_search_cuda"]
    bench += ["--out", out / "beam-search-cuda.json", *["--quick"] * quick]
    found.append(Stage("benchmark of the beam search", bench, 60, 15))
    bench = [python, "-m", "benchmarks.bench_spectrogram_norm_cuda"]
    bench += ["--out", out / "spectrogram-norm-cuda.json", *["--quick"] * quick]
    found += [
        Stage("Triton tests", [*pytest, "-m", "gpu", *triton], 150, 30, needs_build=False),
        Stage("benchmark of spectrogram normalisation", bench, 100, 20, needs_build=False),
    ]
    sanitizer = find_tool("compute-sanitizer") or "compute-sanitizer"
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "3", "--print-limit", "20"]
        found.append(
            Stage(
                f"compute-sanitizer {tool}",
                [*command, python, "tests/cuda_small_cases.py"],
                75,
                15,
                # Memory of its own for each tensor, so that its ends are seen.
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        )
    values = [*pytest, *(f"tests/test_loss{name}.py" for name in _THROUGH_GPU)]
    through_gpu = {"FASTCTC_TEST_THROUGH_GPU": "1"}
    found.append(Stage("tests of values, through the GPU", values, 120, 20, through_gpu))
    return found


def _is_for_gpu(tests: Path) -> bool:
    return "pytest.mark.gpu" in tests.read_text()


def run(stage: Stage, seconds: float, log: Callable[[str], None]) -> dict[str, Any]:
    """Run a stage to its end, or to that of its time."""
    started = time.monotonic()
    module = {"FASTCTC_LIBRARY": str(built_module())} if stage.needs_build else {}
    paths = {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    log(f"\n=== {stage.name}: {' '.join(map(str, stage.command))}\n")
    environment = os.environ | paths | module | stage.environment
    with tempfile.TemporaryFile() as printed:
        try:
            # A session of its own, so that what the process started can be ended with it.
            process = subprocess.Popen(
                [str(part) for part in stage.command],
                cwd=_ROOT,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            process.wait(min(stage.seconds, seconds))
            status = "passed" if process.returncode == 0 else "FAILED"
        except OSError as error:
            status = "FAILED"
            printed.write(str(error).encode())
        except subprocess.TimeoutExpired:
            status = "OUT OF TIME"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        output = printed.read()
    text = output.decode(errors="replace")
    log(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        "name": stage.name,
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "last_lines": lines[-3:] if status == "passed" else lines[-40:],
    }


def run_all(
    planned: Sequence[Stage], log: Callable[[str], None], budget: float
) -> list[dict[str, Any]]:
    """All stages; each is told of as it ends. One that is slow takes no other's least time."""
    ends = time.monotonic() + budget
    results: list[dict[str, Any]] = []
    for stage in planned:
        kept = sum(later.least for later in planned[len(results) + 1 :])
        left = min(ends - time.monotonic(), max(stage.least, ends - time.monotonic() - kept))
        if stage.needs_build and any(
            result["status"] != "passed" for result in results if result["name"] == "build"
        ):
            result = {"name": stage.name, "status": "NOT RUN", "seconds": 0.0, "last_lines": []}
        elif left < 5:
            result = {"name": stage.name, "status": "NO TIME", "seconds": 0.0, "last_lines": []}
        else:
            result = run(stage, left, log)
        results.append(result)
        print(f"{result['status']:<12}{result['seconds']:7.1f} s  {result['name']}", flush=True)
        shown = result["last_lines"] if result["status"] != "passed" else result["last_lines"][-1:]
        for line in shown:
            print(f"            {line}", flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what it finds")
    parser.add_argument("--quick", action="store_true", help="tiny shapes in the benchmarks")
    parser.add_argument("--only", help="a regular expression: run the stages whose name it matches")
    options = parser.parse_args(arguments)
    reason = why_impossible()
    if reason is not None:
        print(f"gpu-check needs a CUDA device: {reason}. Nothing was checked.", file=sys.stderr)
        return 1
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = environment()
    print(f"{found['gpu']}, driver {found['driver']}, torch {found['torch']}, nvcc {found['nvcc']}")
    planned = stages(out, found["capability"].replace(".", ""), options.quick)
    if options.only:
        planned = [stage for stage in planned if re.search(options.only, stage.name)]
    with open(out / "gpu-check.log", "w") as file:

        def log(text: str) -> None:
            file.write(text)
            file.flush()

        results = run_all(planned, log, _SECONDS)
    report = {"environment": found, "stages": results}
    (out / "gpu-check.json").write_text(json.dumps(report, indent=2) + "\n")
    failed = [result["name"] for result in results if result["status"] != "passed"]
    print(f"{len(results) - len(failed)} of {len(results)} stages passed; see {out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
