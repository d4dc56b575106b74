"""Turn pytest-benchmark's JSON into tables: ``python -m benchmarks.report FILE.json``.

Writes FILE.md and FILE.png beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sections import SECTIONS, Row, describe_row
from benchmarks.targets import verdict

TITLES = {
    "norm": "spectrogram normalisation",
    "beam": "the beam search",
    "align": "forced alignment",
}

# Of one processor; less says that the machine was not this run's alone.
QUIET_SHARE = 0.95


def rows_in(document: dict[str, Any]) -> list[Row]:
    """The rows of a stored run, in the order measured."""
    return [bench["extra_info"] for bench in document["benchmarks"] if bench["extra_info"]]


def missed_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows whose target was not reached."""
    return [row for row in rows if verdict(row) == "missed"]


def disturbed_rows(rows: Iterable[Row]) -> list[Row]:
    """Single-threaded rows during which other programs took part of the processor."""
    return [row for row in rows if row["cpu_share"] < QUIET_SHARE]


def conditions(document: dict[str, Any]) -> str:
    """Machine, versions, date and commit."""
    machine, commit = document["machine_info"], document["commit_info"]
    cpu, build = machine["cpu"], machine["fastctc"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    generation = f" family {cpu['family']} model {cpu['model_number']}" if "family" in cpu else ""
    dirty = " with uncommitted changes" if commit.get("dirty") else ""
    return "\n".join(
        (
            f"- CPU: {cpu['model']}{generation} ({cpu['architecture']}), "
            f"{cpu['usable_cpus']} usable",
            f"- instruction sets: {' '.join(cpu['flags'])}",
            f"- fastctc {build['version']}, CPU target {build['cpu_target']} "
            f"(can run: {', '.join(build['cpu_targets']) or 'none'})",
            f"- Python {machine['python_version']}, {versions}, {machine['system']}",
            f"- {document['datetime'][:10]}, commit {str(commit.get('id'))[:12]}{dirty}",
        )
    )


def summary(rows: list[Row]) -> str:
    """How many targets were met, and which were not."""
    verdicts = [verdict(row) for row in rows]
    judged = [found for found in verdicts if found]
    if not judged:
        return "No row of this run has a target."
    missed = missed_rows(rows)
    text = f"{len(judged) - len(missed)} of {len(judged)} targets met, "
    text += f"{verdicts.count('stretch')} of them with the stretch."
    for row in missed:
        text += f"\n- missed: {describe_row(row)}"
    return text


def disturbance(rows: list[Row]) -> str:
    """Whether the machine was quiet, as far as the rows tell."""
    measured = [row for row in rows if row.get("threads") == 1 and "cpu_share" in row]
    disturbed = disturbed_rows(measured)
    if not measured:
        return "Rows of this run say nothing about how quiet the machine was."
    if not disturbed:
        return "The machine was quiet: no single-threaded row had to share its processor."
    return (
        f"**The machine was not quiet**: {len(disturbed)} of {len(measured)} single-threaded rows "
        f"got less than {QUIET_SHARE:.0%} of a processor."
    )


def render(document: dict[str, Any], plot: str | None = None) -> str:
    """The whole report as Markdown; ``plot`` is the file name of a picture to show."""
    rows = rows_in(document)
    subject = TITLES.get(rows[0]["kind"].partition("_")[0], "the CTC loss") if rows else ""
    parts = [f"# fastctc beside its peers: {subject} on the CPU", conditions(document)]
    if any(row["quick"] for row in rows):
        parts.append("**A trial run on tiny shapes: the figures mean nothing.**")
    parts += [summary(rows), disturbance(rows)]
    parts.append(
        "Times are medians of interleaved calls in one process. They include making the output "
        "tensors and, where the loss is from log-probabilities, torch's log-softmax on both sides. "
        "Quartiles are those of the ratios of single rounds. `docs/benchmarks.md` says how to run "
        "this."
    )
    if plot:
        parts.append(f"![How many times as fast]({plot})")
    for kind, section in SECTIONS.items():
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            parts.append(section(chosen))
    return "\n\n".join(parts) + "\n"


def write(source: Path) -> list[Row]:
    """Write the report of a stored run beside it; returns the rows that missed their target."""
    document = json.loads(source.read_text())
    picture = source.with_suffix(".png")
    try:
        from benchmarks.plot import draw
    except ModuleNotFoundError as missing:
        print(f"no picture: {missing.name} is not installed", file=sys.stderr)
        drawn = False
    else:
        drawn = draw(document, picture)
    source.with_suffix(".md").write_text(render(document, picture.name if drawn else None))
    return missed_rows(rows_in(document))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("source", type=Path, help="a JSON file of the suite")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parsed = parser.parse_args(arguments)
    missed = write(parsed.source)
    print(parsed.source.with_suffix(".md"))
    for row in missed:
        print(f"missed: {describe_row(row)}")
    return int(parsed.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
