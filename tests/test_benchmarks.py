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


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_failing_row_leaves_the_report_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    def run(parsed: Any, name: str, target: Path) -> int:
        target.write_text(json.dumps({"benchmarks": [{"extra_info": {}}]}))
        return 1

    reported: list[list[str]] = []
    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(report, "main", lambda arguments: reported.append(arguments) or 0)
    target = tmp_path / "run.json"
    assert suite.run_and_report(suite.parse(options), "loss", target) == 1
    assert reported == [[str(target), *options]]


def test_suites_that_have_no_row_of_the_choice_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the suite needs fastctc[bench]")
    wanted = "test_norm and sequence-64x800x80-gather-1t-auto and not memory"
    options = ["--suite=norm,beam", "--quick", "-k", wanted, f"--out={tmp_path}", "--name=tiny"]
    assert suite.main(options) == 0
    (row,) = report.rows_in(json.loads((tmp_path / "tiny-norm.json").read_text()))
    assert row["kind"] == "norm"
    assert row["rounds"] == len(row["peer_samples_s"]) == 3
    assert not (tmp_path / "tiny-beam.json").exists()
