"""Run the suites and write their reports: ``python -m benchmarks``."""

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

SUITES = {
    "loss": "bench_ctc_loss.py",
    "norm": "bench_spectrogram_norm.py",
    "beam": "bench_beam_search.py",
    "align": "bench_forced_align.py",
}
NO_TESTS_COLLECTED = 5  # pytest's status where -k leaves nothing of a suite


def parse_suites(text: str) -> tuple[str, ...]:
    """The value of --suite."""
    names = tuple(SUITES) if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in SUITES:
            raise ValueError(f"--suite: {name!r} is none of {', '.join(SUITES)} or 'all'")
    return names


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--suite",
        default="all",
        help=f"comma-separated suites from {', '.join(SUITES)}, or 'all' (default: %(default)s)",
    )
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
    parser.add_argument("--name", help="files are NAME-SUITE.* (default: the CPU, or the date)")
    parsed = parser.parse_args(arguments)
    try:
        parsed.suites = parse_suites(parsed.suite)
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
    """What the files of all suites begin with: the machine for a full run, else the time."""
    if parsed.name:
        return str(parsed.name)
    if parsed.quick or parsed.k:
        return f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    from benchmarks.machine import describe_cpu, fastctc_build

    label = f"{describe_cpu()['model']} {fastctc_build()['cpu_target']}"
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def run(parsed: argparse.Namespace, suite: str, target: Path) -> int:
    """Run pytest on a suite in a process of its own; returns its exit status."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(HERE / SUITES[suite]),
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


def run_and_report(parsed: argparse.Namespace, suite: str, target: Path) -> int | None:
    """The exit status of a suite, or None where it had nothing to measure.

    Rows that failed are missing in the report, and make the status that of pytest.
    """
    target.unlink(missing_ok=True)
    status = run(parsed, suite, target)
    if not target.is_file() or not json.loads(target.read_text() or "{}").get("benchmarks"):
        target.unlink(missing_ok=True)
        return None if status in (0, NO_TESTS_COLLECTED) else status
    reported = report.main([str(target), *(["--check"] if parsed.check else [])])
    return status or reported


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    folder, name = choose_folder(parsed).resolve(), choose_name(parsed)
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        run_and_report(parsed, suite, folder / f"{name}-{suite}.json") for suite in parsed.suites
    ]
    statuses = [status for status in found if status is not None]
    if not statuses:
        print("nothing was measured", file=sys.stderr)
        return 1
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
