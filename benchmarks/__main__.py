"""Run the suite and write its report: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import report, rows

HERE = Path(__file__).resolve().parent


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a smoke test")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument(
        "--cpu-targets",
        default=",".join(rows.DEFAULT_CPU_TARGETS),
        help="comma-separated CPU targets, or 'all' (default: %(default)s)",
    )
    parser.add_argument(
        "--peers",
        default=",".join(rows.DEFAULT_PEERS),
        help="comma-separated peers, or 'all' (default: %(default)s)",
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="run only the rows whose id matches")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the JSON, the tables and the picture (default: benchmarks/results; "
        "with --quick or -k: runs/benchmarks)",
    )
    parser.add_argument("--name", help="file name without suffix (default: the CPU, or the date)")
    parsed = parser.parse_args(arguments)
    try:
        rows.parse_cpu_targets(parsed.cpu_targets)
        rows.parse_peers(parsed.peers)
    except ValueError as wrong:
        parser.error(str(wrong))
    return parsed


def choose_folder(parsed: argparse.Namespace) -> Path:
    """A partial run never replaces a committed one unless asked to."""
    if parsed.out:
        return Path(parsed.out)
    if parsed.quick or parsed.k:
        return HERE.parent / "runs" / "benchmarks"
    return HERE / "results"


def choose_name(parsed: argparse.Namespace) -> str:
    """File name without suffix: the machine's for a full run, else the time."""
    if parsed.name:
        return str(parsed.name)
    if parsed.quick or parsed.k:
        return f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    from benchmarks.machine import describe_cpu, fastctc_build

    label = f"{describe_cpu()['model']} {fastctc_build()['cpu_target']}"
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def run(parsed: argparse.Namespace, target: Path) -> int:
    """Run pytest on the suite in a process of its own; returns its exit status."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(HERE / "bench_ctc_loss.py"),
        # The project's own settings are for its tests.
        "-c",
        str(HERE / "pytest.ini"),
        "--rootdir",
        str(HERE.parent),
        "-q",
        "-rs",
        "--benchmark-disable-gc",
        "--benchmark-columns=median,iqr,rounds",
        "--benchmark-group-by=group",
        f"--benchmark-json={target}",
        f"--cpu-targets={parsed.cpu_targets}",
        f"--peers={parsed.peers}",
    ]
    command += ["--quick"] * parsed.quick
    command += ["-k", parsed.k] if parsed.k else []
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    return subprocess.run(command, check=False, cwd=HERE.parent, env=environment).returncode


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    target = choose_folder(parsed).resolve() / f"{choose_name(parsed)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    status = run(parsed, target)
    if not target.is_file() or not json.loads(target.read_text() or "{}").get("benchmarks"):
        print("nothing was measured", file=sys.stderr)
        return status or 1
    missed = report.main([str(target), *(["--check"] if parsed.check else [])])
    return status or missed


if __name__ == "__main__":
    sys.exit(main())
