"""A picture of how many times as fast as its peers fastctc is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.sections import describe_row
from benchmarks.targets import target_of

SERIES = (
    # (threads, CPU target asked for), label, colour
    ((1, "auto"), "1 thread", "#1f5fa8"),
    ((2, "auto"), "2 threads", "#7fb2e5"),
    ((1, "avx2"), "1 thread, AVX2 forced", "#c9862b"),
)
BARS = ("norm", "beam", "align")
PANELS = (("logits", "From logits"), ("log_probs", "From log-probabilities"))


def _chosen(row: dict[str, Any], scores: str) -> bool:
    return bool(
        row["kind"] == "speed"
        and row["scores"] == scores
        and row["mode"] == "train"
        and row["lengths"] == "full"
        and row["dtype"] == "float32"
        and row["peer"] == "torch"
    )


def draw(document: dict[str, Any], path: Path) -> bool:
    """Write the picture to ``path``; False where the run has no row to show."""
    rows = [bench["extra_info"] for bench in document["benchmarks"] if bench["extra_info"]]
    panels = [(title, [row for row in rows if _chosen(row, scores)]) for scores, title in PANELS]
    panels = [(title, chosen) for title, chosen in panels if chosen]
    if not panels:
        return _draw_bars(document, [row for row in rows if row["kind"] in BARS], path)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.4), sharey=True, squeeze=False
    )
    for axis, (title, chosen) in zip(axes[0], panels, strict=True):
        _draw_panel(axis, title, chosen)
    axes[0][0].set_ylabel("times as fast as torch (log scale)")
    handles: list[Artist] = [Patch(color=colour) for _, _, colour in SERIES]
    handles.append(Line2D([], [], color="black", linewidth=2))
    labels = [label for _, label, _ in SERIES]
    figure.legend(
        handles, [*labels, "target"], loc="lower center", ncol=len(handles), frameon=False
    )
    figure.suptitle(
        "CTC loss, forward and backward, float32, against log_softmax + torch's ctc_loss\n"
        f"{_conditions(document)}",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    _save(figure, path)
    return True


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def _conditions(document: dict[str, Any]) -> str:
    machine = document["machine_info"]
    return (
        f"{machine['cpu']['model']}, CPU target {machine['fastctc']['cpu_target']}, "
        f"{document['datetime'][:10]}"
    )


def _draw_bars(document: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> bool:
    """One bar for each comparison of one thread, its target a line across; no bars for costs."""
    rows = [row for row in rows if row.get("threads", 1) == 1 and not row.get("is_cost")]
    if not rows:
        return False
    figure, axis = plt.subplots(figsize=(8.5, 1.2 + 0.28 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        axis.barh(place, row["ratio"], 0.7, color=SERIES[0][2])
        target = None if row["quick"] else target_of(row)
        if target is not None:
            axis.vlines(target.limit, place - 0.4, place + 0.4, color="black", linewidth=2)
        axis.annotate(
            f"{row['ratio']:.1f}",
            (row["ratio"], place),
            textcoords="offset points",
            xytext=(3, -3),
            fontsize=7,
        )
    labels = [describe_row(row) for row in reversed(rows)]
    axis.set_yticks(range(len(rows)), labels, fontsize=7)
    axis.axvline(1, color="grey", linewidth=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("times as fast (log scale); the black lines are targets", fontsize=8)
    axis.set_title(_conditions(document), fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
    return True


def _draw_panel(axis: Any, title: str, rows: list[dict[str, Any]]) -> None:
    workloads = sorted({row["workload"] for row in rows})
    width = 0.8 / len(SERIES)
    for place, (key, _, colour) in enumerate(SERIES):
        for row in rows:
            if (row["threads"], row["cpu_target"]) != key:
                continue
            x = workloads.index(row["workload"]) + (place - (len(SERIES) - 1) / 2) * width
            axis.bar(x, row["ratio"], width * 0.94, color=colour)
            target = None if row["quick"] else target_of(row)
            if target is not None:
                edges = (x - width / 2, x + width / 2)
                axis.hlines(target.limit, *edges, color="white", linewidth=4)
                axis.hlines(target.limit, *edges, color="black", linewidth=2)
            top = max(row["ratio"], 1.0)
            if target is not None and row["ratio"] < target.limit:
                top = target.limit
            axis.annotate(
                f"{row['ratio']:.0f}" if row["ratio"] >= 9.5 else f"{row['ratio']:.1f}",
                (x, top),
                textcoords="offset points",
                xytext=(0, 3),
                ha="center",
                fontsize=6.5,
            )
    axis.axhline(1, color="grey", linewidth=1)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    shapes = {row["workload"]: f"{row['T']}\n{row['N']}\n{row['C']}\n{row['S']}" for row in rows}
    # The tick at the edge heads the lines under the others.
    axis.set_xticks([-0.6, *range(len(workloads))])
    labels = ["\nT\nN\nC\nS", *(f"{name}\n{shapes[name]}" for name in workloads)]
    axis.set_xticklabels(labels, fontsize=8)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.6, len(workloads) - 0.4)
    axis.margins(y=0.12)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
