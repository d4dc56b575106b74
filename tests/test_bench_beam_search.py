"""What the benchmark of the beam search measures, and where it puts it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_beam_search as bench
from benchmarks import decoder_texts as texts

pytestmark = pytest.mark.usefixtures("needs_library")


def result(row: bench.Row, ratio: float) -> dict[str, Any]:
    return {**asdict(row), "ratio": ratio}


def test_rows_measured_earlier_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first, second, third = bench.ROWS[:3]
    bench.store(path, [result(third, 3.0), result(second, 2.0)])
    bench.store(path, [result(first, 1.0), result(second, 2.5)])
    stored = json.loads(path.read_text())["results"]
    assert [entry["ratio"] for entry in stored] == [1.0, 2.5, 3.0]


def test_emissions_spell_the_text_they_are_made_from() -> None:
    spoken = texts.spoken(60)
    emissions = bench.peaky(120, len(texts.TOKENS), text=spoken)
    for token, frame in zip(spoken, emissions[3:117:6], strict=False):
        assert token in frame.topk(2).indices  # beside it a rival, or the blank


def test_phrases_are_distinct_and_can_be_spelled() -> None:
    phrases = texts.phrases(200)
    assert len(set(phrases)) == len(phrases) == 200
    assert set("".join(phrases)) <= {" ", *texts.LETTERS}


def test_a_quick_run_measures_what_costs_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick", "-k", "thread"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| 29", "50"], ["| 5000", "50"]]
