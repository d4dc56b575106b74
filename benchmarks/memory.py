"""Peak memory of one forward and backward pass, in a process of its own (Linux only).

Run as ``python -m benchmarks.memory SUITE CONTENDER WORKLOAD``: prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import OURS, PEERS
from benchmarks.shapes import QUICK_WORKLOADS, WORKLOADS, Shape, make_case

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def why_unsupported() -> str | None:
    """A sentence where this system does not tell a process its peak memory, else None."""
    if STATUS.exists() and CLEAR_REFS.exists():
        return None
    return "peak memory is read from /proc/self/status, which only Linux has"


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{STATUS} has no field {field}")


Step = Callable[[], object]


def peak_of(warm_up: Callable[[], Step], prepare: Callable[[], Step]) -> int:
    """Bytes by which resident memory grew at its highest while one step ran.

    The inputs are there before; the new gradient counts. What libraries set up once comes with the
    step of `warm_up`, a tiny one.
    """
    warm_up()()
    step = prepare()
    CLEAR_REFS.write_text("5")  # resets VmHWM, the peak of the resident set
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def peak_of_loss(contender: str, shape: Shape) -> int:
    prepare = (OURS if contender == OURS.name else PEERS[contender]).prepare
    tiny = Shape("warm-up", 4, 1, 4, 2, "")
    return peak_of(
        lambda: prepare(make_case(tiny), "logits", "train").step,
        lambda: prepare(make_case(shape), "logits", "train").step,
    )


def peak_of_norm(contender: str, workload: str, quick: bool) -> int:
    from benchmarks.bench_spectrogram_norm import BATCHES, QUICK_BATCHES, step_of

    batch = (QUICK_BATCHES if quick else BATCHES)[workload]
    return peak_of(
        lambda: step_of(contender, QUICK_BATCHES[workload]), lambda: step_of(contender, batch)
    )


def measure_in_subprocess(suite: str, contender: str, workload: str, *, quick: bool) -> int:
    """The peak of a step in a fresh interpreter on one thread."""
    command = [sys.executable, "-m", "benchmarks.memory", suite, contender, workload]
    finished = subprocess.run(
        command + ["--quick"] * quick,
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{finished.stderr}")
    return int(json.loads(finished.stdout.splitlines()[-1])["peak_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("suite", choices=["loss", "norm"])
    parser.add_argument("contender")
    parser.add_argument("workload")
    parser.add_argument("--quick", action="store_true", help="use the tiny shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.suite == "norm":
        peak = peak_of_norm(arguments.contender, arguments.workload, arguments.quick)
    else:
        shapes = QUICK_WORKLOADS if arguments.quick else WORKLOADS
        peak = peak_of_loss(arguments.contender, shapes[arguments.workload])
    print(json.dumps({"peak_bytes": peak}))


if __name__ == "__main__":
    main()
