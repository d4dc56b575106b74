"""The tables of the report: one function for each kind of row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from benchmarks.targets import target_of, verdict

Row = dict[str, Any]

MODE_NAMES = {"train": "forward and backward", "forward": "forward only"}
SCORES_NAMES = {
    "logits": "logits",
    "log_probs": "log-probabilities",
    "agreeing": "log-probabilities that agree",
}
VERDICT_NAMES = {"met": "met", "stretch": "met, and the stretch", "missed": "**missed**"}
NORM_PEERS = {
    "eager": "torch",
    "compiled": "torch.compile",
    "gather": "gather + BatchNorm1d + scatter",
}


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
    match row["kind"]:
        case "norm" | "norm_memory" | "norm_accuracy":
            words = ["normalisation", row["workload"], f"against {row['peer']}"]
            words += [row["cpu_target"]] if row["cpu_target"] != "auto" else []
            words += [f"{row['threads']} threads"] if row["threads"] > 1 else []
            return ", ".join(words)
        case "beam":
            against = _beam_against(row)
            return f"beam search, {row['classes']} classes, beam {row['beam']}, against {against}"
        case "align":
            return f"alignment, {row['workload']}, {SCORES_NAMES[row['scores']]}, {row['peer']}"
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


def norm_section(rows: list[Row]) -> str:
    lines = [
        (
            row["workload"],
            NORM_PEERS[row["peer"]],
            *_norm_conditions(row),
            number(row["ours_s"] * 1e3),
            number(row["peer_s"] * 1e3),
            number(row["ratio"]),
            f"{number(row['ratio_low'])} - {number(row['ratio_high'])}",
            _first_calls(row),
            _limit(row),
            _verdict(row),
        )
        for row in sorted(rows, key=lambda row: (row["cpu_target"] != "auto", row["threads"]))
    ]
    head = ("batch", "peer", "threads", "CPU target", "fastctc, ms", "peer, ms", "times as fast")
    more = ("quartiles", "untimed first calls, ms", "target", "")
    text = (
        "Forward and backward in float32; utterances have 60 to 100 % of the longest one's frames. "
        "The peer is the masked formula in torch, eager and compiled, and for sequences also "
        "`BatchNorm1d` on the gathered frames. Sizes are N, T, F, and T, N, bands, electrodes, F "
        "for EMG."
    )
    return f"## Normalisation\n\n{text}\n\n{table((*head, *more), lines, 4)}"


def _norm_conditions(row: Row) -> tuple[str, str]:
    return str(row["threads"]), row["cpu_target_used"]


def norm_memory_section(rows: list[Row]) -> str:
    lines = [
        (
            row["workload"],
            NORM_PEERS[row["peer"]],
            mebibytes(row["input_bytes"]),
            mebibytes(row["ours_bytes"]),
            mebibytes(row["peer_bytes"]),
            number(row["ours_bytes"] / row["input_bytes"]),
            number(row["peer_bytes"] / row["input_bytes"]),
        )
        for row in rows
    ]
    head = ("batch", "peer", "input, MiB", "fastctc, MiB", "peer, MiB")
    more = ("fastctc / input", "peer / input")
    text = (
        "Growth of the resident set at its peak during one forward and backward pass, each in a "
        "fresh process. The result and the gradient are in it: twice the input."
    )
    return f"## Peak memory of normalisation\n\n{text}\n\n{table((*head, *more), lines, 2)}"


def norm_accuracy_section(rows: list[Row]) -> str:
    lines = [
        (
            row["workload"],
            row["cpu_target_used"],
            error(row["ours_error"]),
            error(row["peer_error"]),
            _limit(row, "{:.0e}".format),
            _verdict(row),
        )
        for row in rows
    ]
    head = ("input", "CPU target", "fastctc", "torch", "limit", "")
    text = (
        "The largest error of a float32 result against float64, in standard deviations; of results "
        "above 1, as a share of them."
    )
    return f"## Accuracy of normalisation\n\n{text}\n\n{table(head, lines, 2)}"


def _beam_against(row: Row) -> str:
    words = [row["against"]]
    words += [f"top {row['tokens']}"] if row["tokens"] else []
    words += ["emissions of a text"] if row["spoken"] else []
    return ", ".join(words)


def beam_section(rows: list[Row]) -> str:
    lines = [
        (
            _beam_against(row),
            str(row["classes"]),
            str(row["beam"]),
            number(row["ours_ms"]),
            number(row["peer_ms"]),
            number(row["ratio"]),
            _limit(row),
            _verdict(row),
        )
        for row in rows
    ]
    head = ("against", "classes", "beam", "fastctc, ms", "peer, ms", "times as fast", "target", "")
    text = (
        "One utterance of 1000 frames on one thread, from log-probabilities to hypotheses with "
        "timesteps, in processor time; the rows of threads are in elapsed time."
    )
    return f"## Beam search\n\n{text}\n\n{table(head, lines)}"


def align_section(rows: list[Row]) -> str:
    lines = [
        (
            row["workload"],
            _shape(row),
            SCORES_NAMES[row["scores"]],
            row["peer"],
            number(row["ours_s"] * 1e3),
            number(row["peer_s"] * 1e3),
            number(row["ratio"]),
            f"{number(row['ratio_low'])} - {number(row['ratio_high'])}",
        )
        for row in rows
    ]
    head = ("", "T, N, C, S", "from", "peer", "fastctc, ms", "peer, ms")
    text = "One thread; torchaudio takes one utterance a call."
    return (
        f"## Forced alignment\n\n{text}\n\n{table((*head, 'times as fast', 'quartiles'), lines, 4)}"
    )


SECTIONS = {
    "speed": speed_section,
    "scaling": scaling_section,
    "fixed_cost": fixed_cost_section,
    "memory": memory_section,
    "accuracy": accuracy_section,
    "norm": norm_section,
    "norm_memory": norm_memory_section,
    "norm_accuracy": norm_accuracy_section,
    "beam": beam_section,
    "align": align_section,
}
