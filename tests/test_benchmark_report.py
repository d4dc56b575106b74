"""What the benchmarks report of a stored run, and how they judge it. The times are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, targets


def sample_row(**changes: Any) -> dict[str, Any]:
    row = {
        "kind": "speed",
        "workload": "B",
        "scores": "logits",
        "mode": "train",
        "threads": 1,
        "cpu_target": "auto",
        "cpu_target_used": "avx512",
        "lengths": "full",
        "dtype": "float32",
        "peer": "torch",
        "quick": False,
        "T": 700,
        "N": 16,
        "C": 29,
        "S": 200,
        "origin": "DeepSpeech2",
        "rounds": 7,
        "calls": 1,
        "ours_s": 0.002,
        "peer_s": 0.2464,
        "ratio": 123.2,
        "ratio_low": 120.0,
        "ratio_high": 125.0,
        "cpu_share": 1.0,
    }
    return row | changes


ACCURACY_ROW = sample_row(
    kind="accuracy",
    workload="long",
    case="long",
    ours_loss_error=1e-8,
    ours_gradient_error=3e-7,
    peer_loss_error=1e-6,
    peer_gradient_error=None,
    torch64_loss_error=1e-16,
    torch64_gradient_error=2e-13,
)
MEMORY_ROW = sample_row(
    kind="memory",
    workload="C",
    gradient_bytes=160 * 2**20,
    ours_bytes=200 * 2**20,
    peer_bytes=480 * 2**20,
)
FIXED_ROW = sample_row(kind="fixed_cost", workload="fixed", ours_s=2e-5, peer_s=4e-5, ratio=2.0)
SCALING_ROW = sample_row(kind="scaling", threads=2, peer="fastctc", ratio=1.9)
NORM_ROW = {
    "kind": "norm",
    "workload": "64x800x80",
    "peer": "eager",
    "threads": 1,
    "cpu_target": "auto",
    "cpu_target_used": "avx512",
    "quick": False,
    "ours_s": 0.004,
    "peer_s": 0.0288,
    "ratio": 7.2,
    "ratio_low": 7.0,
    "ratio_high": 7.5,
    "cpu_share": 1.0,
}
SEQUENCE_ROW = NORM_ROW | {"workload": "sequence 64x800x80"}
NORM_MEMORY_ROW = NORM_ROW | {
    "kind": "norm_memory",
    "input_bytes": 16 * 2**20,
    "ours_bytes": 33 * 2**20,
    "peer_bytes": 98 * 2**20,
}
NORM_ACCURACY_ROW = NORM_ROW | {
    "kind": "norm_accuracy",
    "workload": "ordinary",
    "ours_error": 4e-7,
    "peer_error": 2e-3,
}
BEAM_ROW = {
    "kind": "beam",
    "classes": 29,
    "beam": 10,
    "against": "pyctcdecode, its own cuts",
    "spoken": False,
    "is_cost": False,
    "tokens": None,
    "target": 80.0,
    "ours_ms": 0.25,
    "peer_ms": 25.0,
    "ratio": 100.0,
    "quick": False,
}
ALIGN_ROW = sample_row(kind="align", peer="torchaudio")
for untimed in (ACCURACY_ROW, MEMORY_ROW, NORM_MEMORY_ROW, NORM_ACCURACY_ROW):
    del untimed["cpu_share"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (sample_row(), "met"),
        (sample_row(ratio=79.9), "missed"),
        (sample_row(ratio=200.0), "stretch"),
        (sample_row(ratio=1.0, cpu_target_used="vec128"), None),
        (sample_row(ratio=1.0, mode="forward"), None),
        (sample_row(ratio=1.0, threads=2), None),
        (sample_row(ratio=1.0, lengths="ragged"), None),
        (sample_row(ratio=1.0, dtype="bfloat16"), None),
        (sample_row(ratio=1.0, peer="optax"), None),
        (sample_row(ratio=1.0, quick=True), None),
        (sample_row(ratio=15.0, cpu_target="avx2", cpu_target_used="avx2"), "met"),
        (SCALING_ROW, "met"),
        (SCALING_ROW | {"ratio": 1.6}, "missed"),
        (FIXED_ROW, "met"),
        (FIXED_ROW | {"mode": "forward"}, "missed"),
        (MEMORY_ROW, "met"),
        (MEMORY_ROW | {"ours_bytes": 320 * 2**20}, "missed"),
        (ACCURACY_ROW, "met"),
        (ACCURACY_ROW | {"ours_gradient_error": 2e-5}, "missed"),
        (ACCURACY_ROW | {"ours_gradient_error": None}, "missed"),
        (ACCURACY_ROW | {"ours_gradient_error": 2e-5, "case": "combined"}, "met"),
        (NORM_ROW, "met"),
        (NORM_ROW | {"ratio": 5.9}, "missed"),
        (NORM_ROW | {"ratio": 1.4, "peer": "compiled"}, "met"),
        (NORM_ROW | {"ratio": 1.0, "threads": 2}, None),
        (NORM_ROW | {"ratio": 1.0, "cpu_target_used": "avx2"}, None),
        (SEQUENCE_ROW, "missed"),
        (SEQUENCE_ROW | {"ratio": 1.6, "peer": "gather"}, "met"),
        (NORM_MEMORY_ROW, None),
        (NORM_ACCURACY_ROW, "met"),
        (NORM_ACCURACY_ROW | {"ours_error": None}, "missed"),
        (BEAM_ROW, "met"),
        (BEAM_ROW | {"ratio": 79.0}, "missed"),
        (BEAM_ROW | {"ratio": 1.0, "target": None}, None),
        (ALIGN_ROW, None),
    ],
)
def test_verdicts(row: dict[str, Any], expected: str | None) -> None:
    assert targets.verdict(row) == expected


def stored(*stored_rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine_info": {
            "cpu": {
                "model": "Example CPU",
                "architecture": "X86_64",
                "usable_cpus": 2,
                "flags": ["avx2", "fma"],
            },
            "system": "Linux 6",
            "python_version": "3.12.1",
            "versions": {"torch": "2.13.0", "numpy": "2.0"},
            "fastctc": {
                "version": "0.1.0",
                "cpu_target": "avx512",
                "cpu_targets": ["avx512", "avx2"],
            },
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-02T03:04:05+00:00",
        "benchmarks": [{"extra_info": row} for row in stored_rows],
    }


def test_report_of_a_stored_run() -> None:
    missed = sample_row(workload="A", T=150, N=32, C=28, S=40, ratio=29.0)
    text = report.render(
        stored(
            missed,
            sample_row(cpu_share=0.5),
            sample_row(threads=2, ratio=99.0, ours_rehearsals_s=[0.5], peer_rehearsals_s=[1.25]),
            sample_row(lengths="ragged", ratio=98.0),
            SCALING_ROW,
            FIXED_ROW,
            MEMORY_ROW,
            ACCURACY_ROW,
        ),
        "picture.png",
    )
    for expected in (
        "- CPU: Example CPU (X86_64), 2 usable",
        "- 2026-01-02, commit 0123456789ab\n",
        "5 of 6 targets met, 0 of them with the stretch.",
        "- missed: speed, A, logits, forward and backward",
        "**The machine was not quiet**: 1 of 4 single-threaded rows",
        "![How many times as fast](picture.png)",
        "| A | 150, 32, 28, 40 | 2.00 | 246 | 29.0 | 120 - 125 | 7 | - / - | 30 | **missed** |",
        "| B | 700, 16, 29, 200 | 2.00 | 246 | 123 | 120 - 125 | 7 | - / - | 80 | met |",
        "### From logits, forward and backward, 2 threads",
        "| 7 | 500 / 1250 |",
        "### From logits, forward and backward, 1 thread, ragged lengths",
        "| B | 246 | 2.00 | 1.90 | 120 - 125 | 1.7 | met |",
        "| logits | forward and backward | 20.0 | 40.0 | 2.00 | 25 | met |",
        "| C | 700, 16, 29, 200 | 160.0 | 200.0 | 480.0 | 1.25 | 3.00 | 1.5 | met |",
        "| logits | avx512 | 1.0e-08 | 3.0e-07 | 1.0e-06 | NaN | 1.0e-16 | 2.0e-13 | 1e-05 | met |",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("stored_rows", "title", "expected"),
    [
        (
            (NORM_ROW, NORM_MEMORY_ROW, NORM_ACCURACY_ROW),
            "spectrogram normalisation",
            (
                "| 64x800x80 | torch | 1 | avx512 | 4.00 | 28.8 | 7.20 | 7.00 - 7.50 |",
                "| 64x800x80 | torch | 16.0 | 33.0 | 98.0 | 2.06 | 6.12 |",
                "| ordinary | avx512 | 4.0e-07 | 2.0e-03 | 4e-06 | met |",
                "The machine was quiet",
            ),
        ),
        (
            (
                BEAM_ROW,
                BEAM_ROW | {"against": "1 thread", "ratio": 1.7, "target": 1.8},
                BEAM_ROW | {"against": "no model", "ratio": 3.2, "target": 3.0, "is_cost": True},
            ),
            "the beam search",
            (
                "| pyctcdecode, its own cuts | 29 | 10 | 0.25 | 25.0 | 100 | 80 | met |",
                "- missed: beam search, 29 classes, beam 10, against 1 thread",
                "- missed: beam search, 29 classes, beam 10, against no model",
                "nothing about how quiet",
            ),
        ),
        (
            (ALIGN_ROW,),
            "forced alignment",
            ("| B | 700, 16, 29, 200 | logits | torchaudio | 2.00 | 246 | 123 | 120 - 125 |",),
        ),
    ],
)
def test_report_of_the_other_suites(
    stored_rows: tuple[dict[str, Any], ...], title: str, expected: tuple[str, ...]
) -> None:
    text = report.render(stored(*stored_rows))
    assert text.startswith(f"# fastctc beside its peers: {title} on the CPU")
    for part in expected:
        assert part in text


@pytest.mark.parametrize("row", [NORM_ROW, BEAM_ROW, ALIGN_ROW])
def test_other_suites_have_a_picture(tmp_path: Path, row: dict[str, Any]) -> None:
    plot = pytest.importorskip("benchmarks.plot", reason="the picture needs fastctc[bench]")
    assert plot.draw(stored(row), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_what_something_costs_is_not_drawn_as_how_many_times_as_fast(tmp_path: Path) -> None:
    plot = pytest.importorskip("benchmarks.plot", reason="the picture needs fastctc[bench]")
    assert not plot.draw(stored(BEAM_ROW | {"is_cost": True}), tmp_path / "run.png")


def test_report_of_a_trial_run_judges_nothing() -> None:
    text = report.render(stored(sample_row(quick=True, ratio=1.0)))
    assert "the figures mean nothing" in text
    assert "No row of this run has a target." in text
    assert "missed" not in text


@pytest.mark.parametrize(
    ("ratio", "options", "status"), [(79.0, ["--check"], 1), (81.0, ["--check"], 0), (79.0, [], 0)]
)
def test_check_fails_where_a_target_is_missed(
    tmp_path: Path, ratio: float, options: list[str], status: int
) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs fastctc[bench]")
    source = tmp_path / "run.json"
    source.write_text(json.dumps(stored(sample_row(ratio=ratio))))
    assert report.main([str(source), *options]) == status
    assert (tmp_path / "run.md").read_text().startswith("# fastctc beside its peers")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
