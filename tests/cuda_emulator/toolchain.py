"""Compiles the emulator's C++ programs with the compiler alone: no CMake, Python or torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CXX = shutil.which(os.environ.get("CXX", "c++")) or "c++"

# The emulator itself is never instrumented: the sanitizers watch the kernels.
EMULATOR = sorted(HERE.glob("simt*.cpp"))
FLAGS = ("-std=c++17", "-g1", "-Wall", "-Wextra", "-Werror")
# The kernels look at shared memory in more than one type, which nvcc lets them.
KERNEL_FLAGS = (
    "-DFASTCTC_EMULATE_CUDA=1",
    "-DFASTCTC_ONLY_FLOAT32=1",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
)
SANITIZERS = {
    "plain": (),
    "memory": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
    ),
    "address": ("-fsanitize=address", "-fno-omit-frame-pointer"),
    "race": ("-fsanitize=thread",),
}
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0",
}


class BuildError(Exception):
    """The compiler's words."""


@dataclass(frozen=True)
class Result:
    status: int
    output: str
    timed_out: bool = False

    @property
    def passed(self) -> bool:
        return self.status == 0 and not self.timed_out


def call(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(done.stdout + done.stderr)


def compile_source(
    source: Path, into: Path, flags: Sequence[str] = (), include: Path = ROOT / "csrc"
) -> Path:
    """Compile one file, a kernel's too, to an object in the folder `into`."""
    into.mkdir(parents=True, exist_ok=True)
    target = into / f"{source.stem}{source.suffix}.o"
    paths = (f"-I{include}", f"-I{include / 'include'}", f"-I{HERE}")
    call([CXX, *FLAGS, *flags, *paths, "-x", "c++", "-c", source, "-o", target])
    return target


def emulator_objects(build: Path) -> list[Path]:
    return [compile_source(source, build / "emulator", ("-O2",)) for source in EMULATOR]


def link(program: Path, objects: Sequence[Path], sanitizer: str) -> Path:
    call([CXX, *SANITIZERS[sanitizer], *objects, "-pthread", "-o", program])
    return program


def run(
    program: Path,
    *arguments: str,
    order: int = 0,
    limit: float = 300,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run a program in one of the emulator's orders, for at most `limit` seconds."""
    environment = {**os.environ, **SANITIZER_OPTIONS, **(environment or {})}
    environment["FASTCTC_SIMT_ORDER"] = str(order)
    try:
        done = subprocess.run(
            [program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return Result(-1, text, timed_out=True)
    return Result(done.returncode, done.stdout)
