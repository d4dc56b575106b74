"""Turn pytest-benchmark's JSON into tables: ``python -m benchmarks.report FILE.json``.

Writes FILE.md and FILE.png beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.targets import target_of, verdict

Row = dict[str, Any]

MODE_NAMES = {"train": "forward and backward", "forward": "forward only"}
SCORES_NAMES = {"logits": "logits", "log_probs": "log-probabilities"}
VERDICT_NAMES = {"met": "met", "stretch": "met, and the stretch", "missed": "**missed**"}

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
    return [row for row in rows if row["threads"] == 1 and row.get("cpu_share", 1) < QUIET_SHARE]


def table(head: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table whose first ``text_columns`` columns are left-aligned."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def error(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.1e}"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _shape(row: Row) -> str:
    return f"{row['T']}, {row['N']}, {row['C']}, {row['S']}"


def _limit(row: Row, form: Callable[[float], str] = "{:g}".format) -> str:
    target = target_of(row)
    if target is None or row["quick"]:
        return ""
    return form(target.limit)


def _verdict(row: Row) -> str:
    found = verdict(row)
    return "" if found is None else VERDICT_NAMES[found]


def describe_row(row: Row) -> str:
    """A row in words, for messages."""
    parts = [row["kind"].replace("_", " "), row["workload"], SCORES_NAMES[row["scores"]]]
    if row["kind"] in ("speed", "fixed_cost"):
        parts.append(MODE_NAMES[row["mode"]])
    if row["cpu_target"] != "auto":
        parts.append(row["cpu_target"])
    return ", ".join(parts)


def _speed_title(row: Row) -> str:
    words = [
        f"From {SCORES_NAMES[row['scores']]}",
        MODE_NAMES[row["mode"]],
        "1 thread" if row["threads"] == 1 else f"{row['threads']} threads",
    ]
    if row["cpu_target"] != "auto":
        words.append(f"{row['cpu_target']} forced")
    if row["lengths"] != "full":
        words.append("ragged lengths")
    if row["dtype"] != "float32":
        words.append(row["dtype"])
    if row["peer"] != "torch":
        words.append(f"against {row['peer']}")
    return ", ".join(words)


def _speed_order(row: Row) -> tuple[Any, ...]:
    return (
        row["peer"] != "torch",
        row["peer"],
        row["dtype"],
        row["lengths"] != "full",
        row["mode"] == "forward",
        row["cpu_target"] != "auto",
        row["cpu_target"],
        row["threads"],
        row["scores"] != "logits",
    )


def _first_calls(row: Row) -> str:
    """What the untimed calls before the timed ones took, which had to fetch memory anew."""
    return " / ".join(
        number(statistics.median(seconds) * 1e3) if seconds else "-"
        for seconds in (row.get("ours_rehearsals_s"), row.get("peer_rehearsals_s"))
    )


def speed_section(rows: list[Row]) -> str:
    parts = ["## Speed"]
    # float32 sorts behind the half types by name, but it is what the targets are about.
    ordered = sorted(rows, key=lambda row: (row["dtype"] != "float32", _speed_order(row)))
    for title, group in groupby(ordered, key=_speed_title):
        shown = list(group)
        lines = [
            (
                row["workload"],
                _shape(row),
                number(row["ours_s"] * 1e3),
                number(row["peer_s"] * 1e3),
                number(row["ratio"]),
                f"{number(row['ratio_low'])} - {number(row['ratio_high'])}",
                str(row["rounds"]),
                _first_calls(row),
                _limit(row),
                _verdict(row),
            )
            for row in shown
        ]
        peer = title.rpartition("against ")[2] if "against" in title else "torch"
        head = ("", "T, N, C, S", "fastctc, ms", f"{peer}, ms", "times as fast")
        parts.append(f"### {title}")
        columns = (*head, "quartiles", "rounds", "untimed first calls, ms", "target", "")
        parts.append(table(columns, lines, 2))
    return "\n\n".join(parts)


def scaling_section(rows: list[Row]) -> str:
    lines = [
        (
            row["workload"],
            number(row["peer_s"] * 1e3),
            number(row["ours_s"] * 1e3),
            number(row["ratio"]),
            f"{number(row['ratio_low'])} - {number(row['ratio_high'])}",
            _limit(row),
            _verdict(row),
        )
        for row in rows
    ]
    head = ("", "1 thread, ms", "2 threads, ms", "times as fast", "quartiles", "target", "")
    text = "fastctc alone, from logits, forward and backward, the two thread counts interleaved."
    return f"## Threads\n\n{text}\n\n{table(head, lines)}"


def fixed_cost_section(rows: list[Row]) -> str:
    lines = [
        (
            SCORES_NAMES[row["scores"]],
            MODE_NAMES[row["mode"]],
            number(row["ours_s"] * 1e6),
            number(row["peer_s"] * 1e6),
            number(row["ratio"]),
            _limit(row),
            _verdict(row),
        )
        for row in rows
    ]
    head = ("from", "", "fastctc, µs", "torch, µs", "times as fast", "at most, µs", "")
    text = "One utterance of five frames and five classes: what a call costs before any work."
    return f"## Fixed cost\n\n{text}\n\n{table(head, lines, 2)}"


def memory_section(rows: list[Row]) -> str:
    lines = [
        (
            row["workload"],
            _shape(row),
            mebibytes(row["gradient_bytes"]),
            mebibytes(row["ours_bytes"]),
            mebibytes(row["peer_bytes"]),
            number(row["ours_bytes"] / row["gradient_bytes"]),
            number(row["peer_bytes"] / row["gradient_bytes"]),
            _limit(row),
            _verdict(row),
        )
        for row in rows
    ]
    head = ("", "T, N, C, S", "gradient, MiB", "fastctc, MiB", "torch, MiB")
    more = ("fastctc / gradient", "torch / gradient", "at most", "")
    text = (
        "Growth of the resident set at its peak during one forward and backward pass, each in a "
        "fresh process, inputs excluded, the gradient included. One thread, from logits."
    )
    return f"## Peak memory\n\n{text}\n\n{table((*head, *more), lines, 2)}"


def accuracy_section(rows: list[Row]) -> str:
    lines = [
        (
            row["case"],
            row["origin"],
            SCORES_NAMES[row["scores"]],
            row["cpu_target_used"],
            error(row["ours_loss_error"]),
            error(row["ours_gradient_error"]),
            error(row["peer_loss_error"]),
            error(row["peer_gradient_error"]),
            error(row["torch64_loss_error"]),
            error(row["torch64_gradient_error"]),
            _limit(row, "{:.0e}".format),
            _verdict(row),
        )
        for row in rows
    ]
    head = ("case", "input", "from", "CPU target", "fastctc loss", "fastctc gradient")
    more = ("torch loss", "torch gradient", "float64 loss", "float64 gradient", "limit", "")
    text = (
        "Float32 results against the float64 oracle `fastctc.reference` on the same scores: the "
        "largest relative error of a loss and the largest absolute error of a gradient entry "
        "(of the sum of the losses). The float64 columns compare torch's float64 results with the "
        "oracle, where those are finite."
    )
    return f"## Accuracy\n\n{text}\n\n{table((*head, *more), lines, 4)}"


SECTIONS = {
    "speed": speed_section,
    "scaling": scaling_section,
    "fixed_cost": fixed_cost_section,
    "memory": memory_section,
    "accuracy": accuracy_section,
}


def conditions(document: dict[str, Any]) -> str:
    """Machine, versions, date and commit."""
    machine, commit = document["machine_info"], document["commit_info"]
    cpu, build = machine["cpu"], machine["fastctc"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    dirty = " with uncommitted changes" if commit.get("dirty") else ""
    return "\n".join(
        (
            f"- CPU: {cpu['model']} ({cpu['architecture']}), {cpu['usable_cpus']} usable",
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
    measured = [row for row in rows if row["threads"] == 1 and "cpu_share" in row]
    disturbed = disturbed_rows(measured)
    if not disturbed:
        return "The machine was quiet: no single-threaded row had to share its processor."
    return (
        f"**The machine was not quiet**: {len(disturbed)} of {len(measured)} single-threaded rows "
        f"got less than {QUIET_SHARE:.0%} of a processor."
    )


def render(document: dict[str, Any], plot: str | None = None) -> str:
    """The whole report as Markdown; ``plot`` is the file name of a picture to show."""
    rows = rows_in(document)
    parts = ["# fastctc beside its peers: the CTC loss on the CPU", conditions(document)]
    if any(row["quick"] for row in rows):
        parts.append("**A trial run on tiny shapes: the figures mean nothing.**")
    parts += [summary(rows), disturbance(rows)]
    parts.append(
        "Times are medians of interleaved calls in one process. They include making the output "
        "tensors and, from log-probabilities, torch's log-softmax on both sides. Quartiles are "
        "those of the ratios of single rounds. `docs/benchmarks.md` says how to run this."
    )
    if plot:
        parts.append(f"![How many times as fast as torch]({plot})")
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
