"""Training curves from a run folder's metrics.csv, as one PNG."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fastctc.train.errors import DataError

METRICS = "metrics.csv"
#: What a resumed run had logged before, in the same form.
EARLIER = "metrics_earlier.csv"
PICTURE = "curves.png"

Series = tuple[list[float], list[float]]

_BLUE, _ORANGE, _GREY = "#2a6f97", "#c8553d", "#8a8f98"


def read_metrics(run: Path) -> dict[str, Series]:
    """Return {metric: (steps, values)} of a run folder, with what a resumed run had before."""
    series: dict[str, Series] = defaultdict(lambda: ([], []))
    for name in (EARLIER, METRICS):
        path = run / name
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if value and key not in ("step", "epoch"):
                        series[key][0].append(float(row["step"]))
                        series[key][1].append(float(value))
    return dict(series)


def keep_earlier(previous: Path, run: Path, last_step: int) -> None:
    """Copy what ``previous`` logged before ``last_step`` into ``run``, so that curves are whole."""
    rows: list[dict[str, str]] = []
    for name in (EARLIER, METRICS):
        if (previous / name).is_file():
            with (previous / name).open(newline="", encoding="utf-8") as file:
                rows += [r for r in csv.DictReader(file) if float(r["step"]) < last_step]
    if rows:
        keys = list(dict.fromkeys(k for row in rows for k in row))
        with (run / EARLIER).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(rows)


def draw_curves(run: Path) -> Path:
    """Draw loss, error rates, blank fraction, gradient norm and learning rate of a run.

    Returns:
        The path of the PNG.

    Raises:
        DataError: The folder holds no logged step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    series = read_metrics(run)
    if not series:
        raise DataError(f"{run}: no logged metrics to draw")
    # A figure of its own rather than pyplot's: the caller's backend and figures stay as they are.
    figure = Figure(figsize=(12.5, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["loss", "loss", "error", "error", "blank", "blank"],
         [".", "grad", "grad", "lr", "lr", "."]]
    )  # fmt: skip
    figure.suptitle(f"Training curves: {run.parent.name}/{run.name}", fontsize=12)

    def line(panel: str, key: str, label: str, colour: str, **style: Any) -> None:
        if key in series:
            steps, values = series[key]
            panels[panel].plot(steps, values, color=colour, label=label, **style)

    dots = {"marker": "o", "markersize": 4, "linewidth": 1.4}
    line("loss", "train/loss", "training", _BLUE, linewidth=1)
    line("loss", "val/loss", "validation", _ORANGE, **dots)
    line("error", "val/cer", "CER", _ORANGE, **dots)
    line("error", "val/wer", "WER", _BLUE, **dots)
    line("blank", "train/blank_fraction", "frames whose best class is blank", _BLUE, linewidth=1)
    line("blank", "train/blank_posterior", "mean probability of blank", _GREY, linewidth=1)
    line("blank", "val/blank_fraction", "best class blank, validation", _ORANGE, **dots)
    line("grad", "train/grad_norm", "before clipping", _BLUE, linewidth=1)
    line("lr", "train/lr", "learning rate", _BLUE, linewidth=1.4)

    titles = {
        "loss": ("CTC loss", "nats per label"),
        "error": ("Validation error rates", ""),
        "blank": ("Blank", "share"),
        "grad": ("Gradient norm", ""),
        "lr": ("Learning rate", ""),
    }
    for key, (title, unit) in titles.items():
        panel = panels[key]
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xlabel("step", fontsize=9)
        panel.set_ylabel(unit, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        logarithmic = key in ("loss", "error", "grad") and any(
            value > 0 for curve in panel.lines for value in np.asarray(curve.get_ydata())
        )
        if logarithmic:
            panel.set_yscale("log")
        if key == "error" and logarithmic:
            # Error rates span a decade or two: label more than the powers of ten.
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))
            panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlim(left=0)
        if panel.lines and key != "lr":
            panel.legend(fontsize=8, frameon=False)
    panels["blank"].set_ylim(-0.02, 1.02)
    path = run / PICTURE
    figure.savefig(path, dpi=120)
    return path
