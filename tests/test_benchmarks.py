"""The benchmark suite runs, interleaves, and reports what it measured. No time is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# At the end: the installed package must not be replaced by the source tree's.
sys.path.append(str(ROOT))

from benchmarks import __main__ as suite  # noqa: E402
from benchmarks import (  # noqa: E402
    accuracy,
    bench_beam_search,
    bench_spectrogram_norm,
    memory,
    report,
    rows,
    targets,
)
from benchmarks.interleave import Samples, choose_rounds, interleave  # noqa: E402
from benchmarks.peers import MODES, OURS, PEERS, SCORES  # noqa: E402
from benchmarks.shapes import QUICK_WORKLOADS, WORKLOADS, Shape, make_case  # noqa: E402


class Recorder:
    """Runs what pytest-benchmark would run, with made-up times."""

    disabled = False

    def __init__(self) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target: Any, *, setup: Any, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()
            self.stats.stats.data.append(0.5)


def test_contenders_take_turns() -> None:
    log: list[str] = []
    samples = interleave(
        Recorder(),
        lambda: log.append("ours"),
        lambda: log.append("peer"),
        rounds=3,
        calls=2,
        before_ours=lambda: log.append("to ours"),
        before_peer=lambda: log.append("to peer"),
    )
    assert log == ["to peer", "peer", "peer", "to ours", "ours", "ours"] * 3
    assert samples.ours == (0.25, 0.25, 0.25)
    assert len(samples.peer) == 3


def test_rehearsals_are_kept_apart() -> None:
    log: list[str] = []
    samples = interleave(
        Recorder(),
        lambda: log.append("ours"),
        lambda: log.append("peer"),
        rounds=2,
        rehearse=True,
    )
    assert log == ["peer", "peer", "ours", "ours"] * 2
    assert len(samples.peer) == len(samples.ours) == 2
    assert len(samples.peer_rehearsals) == len(samples.our_rehearsals) == 2


def test_disabled_benchmarks_are_refused() -> None:
    recorder = Recorder()
    recorder.disabled = True
    with pytest.raises(RuntimeError, match="--benchmark-disable"):
        interleave(recorder, lambda: None, lambda: None, rounds=1)


def test_ratio_is_of_medians_and_spread_of_rounds() -> None:
    samples = Samples(ours=(1.0, 2.0, 4.0), peer=(16.0, 40.0, 24.0), cpu_share=1.0)
    assert samples.ratio == 24.0 / 2.0
    assert samples.spread == (11.0, 18.0)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.1, 20), (5.0, 3), (0.001, 41), (0.0, 41)])
def test_rounds_fit_the_budget(seconds: float, rounds: int) -> None:
    assert choose_rounds(seconds, budget=2.0, fewest=3, most=41) == rounds


@pytest.mark.parametrize("shape", QUICK_WORKLOADS.values(), ids=QUICK_WORKLOADS)
@pytest.mark.parametrize("lengths", ["full", "ragged"])
def test_cases_are_reproducible_and_possible(shape: Shape, lengths: str) -> None:
    case = make_case(shape, lengths)
    make_case.cache_clear()
    again = make_case(shape, lengths)
    assert torch.equal(case.logits, again.logits)
    assert torch.equal(case.targets, again.targets)
    assert case.logits.shape == (shape.frames, shape.batch, shape.classes)
    assert int(case.targets.min()) >= 1
    half = 2 if lengths == "ragged" else 1
    assert int(case.input_lengths.min()) >= math.ceil(shape.frames / half)
    assert int(case.target_lengths.min()) >= math.ceil(shape.labels / half)
    losses = torch.nn.functional.ctc_loss(
        case.logits.detach().log_softmax(-1),
        case.targets,
        case.input_lengths,
        case.target_lengths,
        reduction="none",
    )
    assert bool(losses.isfinite().all())


def test_ragged_lengths_leave_room_for_repeats() -> None:
    crowded = Shape("crowded", 16, 64, 2, 8, "one class, so that every label is a repeat")
    case = make_case(crowded, "ragged")
    assert bool((case.input_lengths >= 2 * case.target_lengths - 1).all())


def test_ragged_lengths_differ() -> None:
    case = make_case(QUICK_WORKLOADS["E"], "ragged")
    assert len(set(case.input_lengths.tolist())) > 1
    assert len(set(case.target_lengths.tolist())) > 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("scores", "dtype"),
    [
        ("logits", "float32"),
        ("log_probs", "float32"),
        ("logits", "bfloat16"),
        ("logits", "float16"),
    ],
)
def test_contenders_compute_the_same(scores: str, mode: str, dtype: str) -> None:
    case = make_case(QUICK_WORKLOADS["B"], "ragged", dtype)
    ours = OURS.prepare(case, scores, mode)
    peer = PEERS["torch"].prepare(case, scores, mode)
    ours.step()
    peer.step()
    assert case.logits.grad is None, "each step has to make a gradient of its own"
    our_loss, our_gradient = ours.evaluate()
    peer_loss, peer_gradient = peer.evaluate()
    assert our_loss == pytest.approx(peer_loss, rel=1e-4)
    if mode == "forward":
        assert our_gradient is None
        assert peer_gradient is None
    else:
        tolerance = 1e-5 if dtype == "float32" else 1e-3
        torch.testing.assert_close(our_gradient, peer_gradient, rtol=1e-2, atol=tolerance)


def test_missing_peers_say_what_to_install() -> None:
    absent = PEERS["optax"].__class__(
        name="nobody",
        call="",
        modules=("no_such_module",),
        distributions=(),
        requirements="requirements-nobody.txt",
        prepare=OURS.prepare,
    )
    assert "pip install -r benchmarks/requirements-nobody.txt" in (absent.why_missing() or "")
    assert PEERS["torch"].why_missing() is None
    for peer in PEERS.values():
        if peer.requirements:
            assert (ROOT / "benchmarks" / peer.requirements).is_file()


def test_every_target_has_a_row() -> None:
    everything = [
        row
        for kind in ("speed", "scaling", "fixed_cost", "memory", "accuracy")
        for row in rows.rows_of(kind, cpu_targets=("auto", "avx2"), peers=("torch",))
    ]
    assert len({(row.kind, row.id) for row in everything}) == len(everything)
    plain = {
        (row.scores, row.cpu_target, row.subject)
        for row in everything
        if (row.kind, row.mode, row.threads, row.lengths, row.dtype)
        == ("speed", "train", 1, "full", "float32")
    }
    for (scores, cpu_target), by_workload in targets.SPEED.items():
        asked = "auto" if cpu_target == "avx512" else cpu_target
        assert {(scores, asked, workload) for workload in by_workload} <= plain
    assert set(targets.SCALING) | set(targets.MEMORY) <= set(WORKLOADS)
    assert {row.subject for row in everything if row.kind == "accuracy"} >= {"combined", "survivor"}


def test_every_target_of_normalisation_has_a_row() -> None:
    everything = [
        row
        for kind in ("norm", "norm_memory", "norm_accuracy")
        for row in bench_spectrogram_norm.rows_of(kind, cpu_targets=("auto", "avx2"), peers=())
    ]
    assert len({(row.kind, row.id) for row in everything}) == len(everything)
    judged = {
        (row.subject, row.peer)
        for row in everything
        if row.kind == "norm" and row.threads == 1 and row.cpu_target == "auto"
    }
    for subject in bench_spectrogram_norm.BATCHES:
        by_peer = targets.NORM_SEQUENCE if subject.startswith("sequence") else targets.NORM
        assert {(subject, peer) for peer in by_peer} <= judged


def test_rows_of_the_beam_search_have_names_of_their_own() -> None:
    found = bench_beam_search.rows_of("beam")
    assert len({row.id for row in found}) == len(found)


@pytest.mark.parametrize("subject", bench_spectrogram_norm.QUICK_BATCHES)
def test_contenders_normalise_alike(subject: str) -> None:
    batch = bench_spectrogram_norm.QUICK_BATCHES[subject]
    case = bench_spectrogram_norm.Case(batch)
    ours = case.evaluate(case.ours())
    for name in set(bench_spectrogram_norm.peers_of(batch)) - {"compiled"}:
        for mine, theirs in zip(ours, case.evaluate(case.peer(name)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    case.step(case.ours())()
    assert case.x.grad is None, "each step has to make a gradient of its own"


@pytest.mark.parametrize(
    ("parse", "name"),
    [(rows.parse_cpu_targets, "sse9"), (rows.parse_peers, "x"), (suite.parse_suites, "triton")],
)
def test_unknown_choices_are_named(parse: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is none of"):
        parse(name)


def log_alpha(labels: list[int], emissions: torch.Tensor) -> torch.Tensor:
    """log alpha (T, 2S+1) of one row in float64, written out state by state."""
    states = [0]
    for label in labels:
        states += [label, 0]
    frames = emissions.shape[0]
    alpha = torch.full((frames, len(states)), -math.inf, dtype=torch.float64)
    alpha[0, 0] = emissions[0, 0]
    alpha[0, 1] = emissions[0, states[1]]
    for t in range(1, frames):
        for s, label in enumerate(states):
            sources = [alpha[t - 1, s]]
            if s > 0:
                sources.append(alpha[t - 1, s - 1])
            if s > 1 and label and label != states[s - 2]:
                sources.append(alpha[t - 1, s - 2])
            alpha[t, s] = torch.logsumexp(torch.stack(sources), 0) + emissions[t, label]
    return alpha


def test_survivor_case_is_what_it_claims() -> None:
    """At some frame, all that can still finish is below 1e-300 of the best prefix."""
    case = accuracy.make_accuracy_case("survivor")
    emissions = case.logits[:, 0].double().log_softmax(-1)
    labels = case.targets[0].tolist()
    forward = log_alpha(labels, emissions)
    backward = log_alpha(labels[::-1], emissions.flip(0)).flip(0, 1)
    finishing = forward.masked_fill(backward == -math.inf, -math.inf)
    gaps = forward.amax(1) - finishing.amax(1)
    assert float(gaps.max()) > -math.log(1e-300)
    assert bool((finishing.amax(1) > -math.inf).all()), "something has to survive"


@pytest.mark.parametrize("name", ["masked", "survivor", "combined"])
def test_difficult_cases_have_an_alignment(name: str) -> None:
    case = accuracy.make_accuracy_case(name, quick=True)
    losses, gradient = accuracy.evaluate_torch64(case, "logits")
    assert bool(losses.isfinite().all())
    assert bool(gradient.isnan().any()) == bool(case.logits.isinf().any()), (
        "torch makes NaN at classes of -inf; where it no longer does, the comparison can go"
    )


def test_errors_are_relative_for_losses_and_absolute_for_gradients() -> None:
    exact = (torch.tensor([100.0, 1.0]).double(), torch.zeros(1, 2, 2).double())
    result = (torch.tensor([101.0, 1.0]), torch.full((1, 2, 2), -0.25))
    assert accuracy.errors(result, exact) == accuracy.Errors(pytest.approx(0.01), 0.25)
    result[1][0, 0, 0] = math.nan
    assert math.isnan(accuracy.errors(result, exact).gradient)
    assert accuracy.errors(result, exact, where_finite=True).gradient == 0.25


def test_memory_is_the_peak_of_one_step(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    unsupported = memory.why_unsupported()
    if unsupported:
        pytest.skip(unsupported)
    # As the suite has it: pages that a core has fetched are counted in batches, core by core.
    torch.set_num_threads(1)
    size = 96 * 2**20

    def prepare(case: Any, scores: str, mode: str) -> Any:
        def step() -> None:
            torch.ones(size, dtype=torch.uint8)

        return SimpleNamespace(step=step if case.shape.name == "A" else lambda: None)

    monkeypatch.setattr(memory, "OURS", SimpleNamespace(name="fastctc", prepare=prepare))
    peak = memory.peak_of_loss("fastctc", QUICK_WORKLOADS["A"])
    assert size * 0.8 < peak < size * 1.5


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


def test_partial_runs_do_not_replace_stored_results() -> None:
    for options in (["--quick"], ["-k", "speed"]):
        assert suite.choose_folder(suite.parse(options)) == ROOT / "runs" / "benchmarks"
    assert suite.choose_folder(suite.parse([])) == ROOT / "benchmarks" / "results"


def test_suite_runs_on_tiny_shapes(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the suite needs fastctc[bench]")
    pytest.importorskip("numba", reason="the accuracy rows need fastctc[reference]")
    wanted = "(test_speed and A and 1t) or test_fixed_cost or (test_memory and A-) or peaky"
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--suite=loss", "--quick", "-k", wanted),
            *(f"--out={tmp_path}", "--name=tiny"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    document = json.loads((tmp_path / "tiny-loss.json").read_text())
    measured = report.rows_in(document)
    assert {row["kind"] for row in measured} >= {"speed", "fixed_cost", "accuracy"}
    speed = [row for row in measured if row["kind"] == "speed"]
    assert {(row["scores"], row["mode"]) for row in speed} == {
        (scores, mode) for scores in SCORES for mode in MODES
    }
    for row in speed:
        assert row["rounds"] == len(row["peer_samples_s"]) == 3
        assert row["ratio"] > 0
    for row in measured:
        if row["kind"] == "accuracy":
            assert row["ours_gradient_error"] < 1e-5
    assert document["machine_info"]["versions"]["torch"] == torch.__version__
    assert "the figures mean nothing" in (tmp_path / "tiny-loss.md").read_text()


def test_suites_that_have_no_row_of_the_choice_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the suite needs fastctc[bench]")
    wanted = "test_norm and sequence-64x800x80-gather-1t-auto and not memory"
    options = ["--suite=norm,beam", "--quick", "-k", wanted, f"--out={tmp_path}", "--name=tiny"]
    assert suite.main(options) == 0
    (row,) = report.rows_in(json.loads((tmp_path / "tiny-norm.json").read_text()))
    assert row["kind"] == "norm"
    assert row["rounds"] == len(row["peer_samples_s"]) == 3
    assert not (tmp_path / "tiny-beam.json").exists()
