"""Forced alignment: the best of all paths, on every CPU target."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from align_cases import align, assert_same, best_of_all, oracle
from cuda_backends import ON_CUDA
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import Case, make_case

import fastctc
from fastctc import TokenSpan, forced_align, merge_tokens
from fastctc.train.formant import SAMPLE_RATE, FormantCorpus

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGETS = ([], [1], [2, 1], [1, 1], [1, 2, 1], [2, 2, 2], [1, 2, 2, 1])


def single(log_probs: np.ndarray, target: list[int], blank: int = 0, **options: Any) -> Any:
    """Paths and scores of one utterance."""
    labels = torch.tensor(target, dtype=torch.int64)
    return forced_align(torch.from_numpy(log_probs), labels, blank=blank, **options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("frames", [1, 2, 4, 7])
def test_equals_the_best_of_all_paths(cpu_target: str, frames: int, target: list[int]) -> None:
    rng = np.random.default_rng(400)
    for _ in range(5):
        log_probs = np.log(rng.dirichlet(np.ones(3), frames))
        best = best_of_all(log_probs, target, 0)
        if best is None:
            with pytest.raises(ValueError, match=r"row 0 has no path"):
                single(log_probs, target)
            continue
        path, scores = single(log_probs, target)
        assert path.tolist() == best[0]
        assert float(scores.sum()) == pytest.approx(best[1], rel=1e-14)
        assert scores.tolist() == [log_probs[t, c] for t, c in enumerate(path.tolist())]


@pytest.mark.parametrize("target", TARGETS)
def test_ties_follow_the_documented_rule(cpu_target: str, target: list[int]) -> None:
    """Whole numbers, so that many paths have exactly the same score."""
    rng = np.random.default_rng(401)
    for frames in range(1, 8):
        for classes in (0, 1, 3):
            scores = -rng.integers(0, classes + 1, (frames, 3)).astype(np.float64)
            scores[rng.random(scores.shape) < 0.05] = -math.inf
            best = best_of_all(scores, target, 0)
            path, _ = single(scores, target, on_impossible="mark")
            assert path.tolist() == ([-1] * frames if best is None else best[0])


@given(st.data())
def test_any_batch_equals_the_reference(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 40))
    case = make_case(
        data.draw(st.integers(0, 2**31)),
        data.draw(st.integers(1, 60)),
        data.draw(st.integers(1, 5)),
        classes,
        data.draw(st.integers(0, 30)),
        blank=data.draw(st.integers(0, classes - 1)),
        dtype=data.draw(st.sampled_from(DTYPES)),
        scale=data.draw(st.sampled_from([0.0, 1.0, 10.0])),
        layout=data.draw(st.sampled_from(["padded", "concatenated"])),
        repeats=data.draw(st.booleans()),
        fitting=data.draw(st.booleans()),
    )
    from_logits = data.draw(st.booleans())
    result = align(case, from_logits=from_logits)
    faults = assert_same(case, result, from_logits)
    for n in torch.nonzero(faults == 0).flatten().tolist():
        assert spelled(result[0][n], case) == case_labels(case, n)


def spelled(path: torch.Tensor, case: Case) -> list[int]:
    """The labels that a path stands for."""
    return [label for label, _ in itertools.groupby(path.tolist()) if label != case.blank]


def case_labels(case: Case, n: int) -> list[int]:
    """The labels of row `n`."""
    lengths = case.target_lengths.tolist()
    if case.targets.dim() == 2:
        return case.targets[n, : lengths[n]].tolist()
    first = sum(lengths[:n])
    return case.targets[first : first + lengths[n]].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 3, 2, 1), (90, 4, 29, 40), (70, 3, 700, 9), (300, 2, 12, 130), (40, 3, 5, 0)]
)
def test_all_shapes_and_dtypes(
    cpu_target: str, shape: tuple[int, int, int, int], dtype: torch.dtype, from_logits: bool
) -> None:
    case = make_case(402, *shape, blank=shape[2] - 1, dtype=dtype, scale=4.0, garbage=-9)
    assert_same(case, align(case, from_logits=from_logits), from_logits)


def test_score_is_the_best_term_of_the_loss() -> None:
    """One path is less likely than all together, and a sure model leaves nothing to the others."""
    case = make_case(403, fitting=True, dtype=torch.float64)
    case = case.with_scores(case.scores.log_softmax(-1))
    total = -fastctc.ctc_loss(*case.arguments(), reduction="none")
    best = align(case)[1].sum(1)
    assert torch.all(best < total)
    paths, _ = align(case)
    sure = torch.full_like(case.scores, -60.0)
    sure.scatter_(2, paths.T[..., None], 0.0)
    case = case.with_scores(sure)
    total = -fastctc.ctc_loss(*case.arguments(), reduction="none")
    torch.testing.assert_close(align(case)[1].sum(1), total, rtol=0, atol=1e-9)


def test_float32_is_summed_without_loss() -> None:
    """Where float32 sums would have forgotten the difference between two paths."""
    frames = 4000
    scores = torch.full((frames, 3), -8.0)
    scores[2000, 1], scores[2001, 1] = -8.0, -7.9999995
    path, _ = forced_align(scores, torch.tensor([1]))
    reference_path, _ = forced_align(scores.double(), torch.tensor([1]))
    assert torch.equal(path, reference_path)
    assert path[2001] == 1


def hand_made_posteriors(
    letters: list[tuple[int, int, int]], frames: int, classes: int
) -> torch.Tensor:
    """Log-probabilities of a model that hears each letter (class, first frame, end) for certain.

    A letter that comes twice in a row is heard as a blank in the last frame of the first one.
    """
    heard = np.zeros(frames, dtype=np.int64)
    for (label, start, end), (following, *_) in zip(letters, [*letters[1:], (0,)], strict=True):
        heard[start : end - (label == following)] = label
    probs = np.full((frames, classes), 0.1 / (classes - 1))
    probs[np.arange(frames), heard] = 0.9
    return torch.from_numpy(np.log(probs))


@pytest.mark.parametrize("index", range(6))
def test_finds_the_true_times_of_letters(cpu_target: str, index: int) -> None:
    utterance = FormantCorpus("train", 6, seed=1)[index]
    symbols = sorted(set(utterance.text))
    hop = SAMPLE_RATE // 100
    letters = [
        (symbols.index(s.letter) + 1, round(s.start / hop), round(s.end / hop))
        for s in utterance.alignment
    ]
    frames = len(utterance.audio) // hop + 1
    log_probs = hand_made_posteriors(letters, frames, len(symbols) + 1)
    target = torch.tensor([[label for label, _, _ in letters]])
    paths, scores = forced_align(log_probs[None], target)
    spans = merge_tokens(paths[0], scores[0])
    assert [span.token for span in spans] == target[0].tolist()
    for span, (label, start, end), (following, *_) in zip(
        spans, letters, [*letters[1:], (0, 0)], strict=True
    ):
        assert (span.start, span.end) == (start, end - (label == following))
        assert span.score == pytest.approx(math.log(0.9))


def test_layouts_lengths_and_types_of_targets_do_not_matter() -> None:
    case = make_case(405, ragged=True)
    expected = align(case)
    concatenated = torch.cat(
        [
            row[:length]
            for row, length in zip(case.targets, case.target_lengths.tolist(), strict=True)
        ]
    )
    lists = case.input_lengths.tolist(), case.target_lengths.tolist()
    results = [
        forced_align(case.scores.transpose(0, 1), *case.arguments()[1:4]),
        forced_align(case.scores.transpose(0, 1).contiguous(), case.targets, *lists),
        align(case.with_scores(torch.stack([case.scores, case.scores], 3)[..., 0])),
        forced_align(case.scores, concatenated, *lists, batch_first=False),
        forced_align(case.scores, case.targets.to(torch.uint8), *lists, batch_first=False),
        forced_align(case.scores.requires_grad_(), case.targets, *lists, batch_first=False),
    ]
    for paths, scores in results:
        assert torch.equal(paths, expected[0])
        assert torch.equal(scores, expected[1])
        assert paths.dtype is torch.int64
        assert not scores.requires_grad
    paths, _ = forced_align(case.scores, case.targets.int(), *lists, batch_first=False)
    assert paths.dtype is torch.int32


def test_lengths_default_to_the_shapes() -> None:
    case = make_case(406, ragged=False)
    scores = case.scores.transpose(0, 1)
    paths, chosen = forced_align(scores, case.targets)
    assert torch.equal(paths, forced_align(scores, *case.arguments()[1:4])[0])
    path, score = forced_align(scores[2], case.targets[2])
    assert torch.equal(path, paths[2])
    assert torch.equal(score, chosen[2])


def test_frames_past_the_length_are_blank() -> None:
    case = make_case(407, blank=3, dtype=torch.bfloat16)
    paths, scores = align(case)
    assert scores.dtype is torch.float32
    for n, length in enumerate(case.input_lengths.tolist()):
        assert torch.all(paths[n, length:] == 3)
        assert torch.all(scores[n, length:] == 0)
    case.scores[5:, 0] = math.nan
    case.input_lengths[0] = 5
    case.target_lengths[0] = 2
    assert torch.all(align(case)[0][0, :5] >= 0)


def faulty_case() -> Case:
    """Row 1 has too few frames, row 2 only paths of -inf, row 3 a NaN."""
    case = make_case(408, 12, 5, 6, 4, ragged=False)
    case.input_lengths[1] = 3
    case.scores[4, 2] = -math.inf
    case.scores[6, 3, int(case.targets[3, 1])] = math.nan
    return case


def test_rows_without_a_path_are_named() -> None:
    case = faulty_case()
    with pytest.raises(ValueError, match=r"row 1 has no path.*\(and 2 other rows are at fault\)"):
        align(case, on_impossible="raise")
    case.input_lengths[1] = 12
    with pytest.raises(ValueError, match=r"row 2 has no path: .*-inf"):
        align(case, on_impossible="raise")
    case.scores[4, 2] = 0.0
    with pytest.raises(ValueError, match=r"row 3 has NaN or .inf among its scores"):
        align(case, on_impossible="raise")


def test_rows_without_a_path_are_marked(cpu_target: str) -> None:
    case = faulty_case()
    paths, scores = align(case)
    assert_same(case, (paths, scores))
    assert torch.all(paths[1:4] == -1)
    assert torch.all(scores[1:3] == -math.inf)
    assert torch.all(scores[3].isnan())
    assert merge_tokens(paths[1], scores[1]) == []
    good = make_case(408, 12, 5, 6, 4, ragged=False)
    for n in (0, 4):
        assert torch.equal(paths[n], align(good)[0][n])


def agreeing_case(surprises: int, *, labels: int = 90, dtype: torch.dtype = torch.float32) -> Case:
    """Two utterances that a model is sure of, but for labels in the text that it has not heard.

    Each of these costs about 12 nats. What is 40 nats or 200 from the best is left out at first.
    """
    case = make_case(430, 5 * labels, 2, 31, labels, dtype=torch.float64, ragged=False)
    scores = torch.randn(case.scores.shape, generator=torch.Generator().manual_seed(431))
    scores = scores.double()
    scores[..., case.blank] += 8
    for n in range(2):
        for i, label in enumerate(case.targets[n].tolist()):
            scores[2 + 5 * i, n, label] += 14
    changed = torch.linspace(3, labels - 4, surprises).long()
    case.targets[:, changed] = case.targets[:, changed] % 30 + 1
    return case.with_scores(scores.log_softmax(-1).to(dtype))


@pytest.mark.parametrize("surprises", [0, 2, 3, 8, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_states_are_left_out_that_are_on_no_best_path(
    cpu_target: str, surprises: int, dtype: torch.dtype
) -> None:
    case = agreeing_case(surprises, dtype=dtype)
    assert_same(case, align(case))
    assert_same(case, align(case, from_logits=True), from_logits=True)


def test_states_are_left_out_between_checkpoints_too(
    cpu_target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastctc.config, "max_workspace_mb", 1)
    for surprises in (0, 9, 300):
        case = agreeing_case(surprises, labels=1000)
        assert_same(case, align(case))


def walks(frames: int, labels: int, *paths: tuple[int, list[float]]) -> tuple[torch.Tensor, ...]:
    """Scores of labels 1, 2, ... that leave but some paths, and the targets.

    A path waits at the first label until a frame, goes on by a label a frame, and waits at the
    last. It loses what its list says, frame by frame. Every frame's largest score is -1.5.
    """
    scores = torch.full((frames, labels + 1), -1001.5)
    for start, losses in paths:
        for t, loss in enumerate(losses):
            label = min(max(1, t - start + 1), labels)
            scores[t, label] = max(float(scores[t, label]), -1.5 - loss)
    return scores, torch.arange(1, labels + 1)


def lost(frames: int, first: int, end: int, loss: float) -> list[float]:
    return [loss if first <= t < end else 0.0 for t in range(frames)]


@pytest.mark.parametrize("loss", [4.0, 10.0, 45.0])
def test_a_path_that_loses_late_does_not_hide_a_better_one(cpu_target: str, loss: float) -> None:
    """One loses early, far from the other, which loses a little more in the last frame alone."""
    frames, labels = 120, 60
    early = (0, lost(frames, 12, 17, loss))
    scores, target = walks(frames, labels, early, (frames - labels, [0.0] * frames))
    # the late one has to be on the last label; the early one may be on the blank after it
    scores[-1] = torch.tensor([-1.5, *[-1001.5] * (labels - 2), -1.5, -1.5 - 5 * loss - 2])
    path, _ = forced_align(scores, target)
    assert path[:-1].tolist() == [min(t + 1, labels) for t in range(frames - 1)]
    assert path[-1] == 0


def test_a_second_guess_does_not_hide_a_better_path_either(cpu_target: str) -> None:
    """Both lose more than the first guess; the second one is between the two."""
    frames, labels = 120, 60
    early, late = lost(frames, 90, 95, 18), lost(frames, 88, 89, 45)
    scores, target = walks(frames, labels, (0, early), (frames - labels, late))
    scores[-1] = torch.tensor([-1.5, *[-1001.5] * (labels - 2), -1.5, -63.5])
    path, _ = forced_align(scores, target)
    assert path.tolist() == [*[min(t + 1, labels) for t in range(frames - 1)], 0]


def test_what_was_left_out_does_not_come_back(cpu_target: str) -> None:
    """One runs ahead and loses all there; the other comes by later."""
    frames, labels = 120, 60
    ahead = lost(frames, 40, frames, 50)
    scores, target = walks(frames, labels, (0, ahead), (frames - labels, [0.0] * frames))
    scores[85:, 0] = -1.5  # where the one ahead was, something could go on from here
    path, _ = forced_align(scores, target)
    assert path.tolist() == [max(1, t - frames + labels + 1) for t in range(frames)]


@pytest.mark.parametrize("scale", [1e-3, 1e4, 1e12])
def test_scores_of_any_size_have_their_best_path(cpu_target: str, scale: float) -> None:
    case = agreeing_case(3, dtype=torch.float64)
    case = case.with_scores(case.scores * scale + scale)
    assert_same(case, align(case))


@pytest.mark.parametrize("frame", [25, 225, 440])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frame_that_nothing_can_be_in_is_found(
    cpu_target: str, frame: int, dtype: torch.dtype
) -> None:
    case = agreeing_case(0, dtype=dtype)
    case.scores[frame, 0] = -math.inf
    assert assert_same(case, align(case)).tolist() == [1, 0]


@pytest.mark.parametrize("frame", [25, 225, 440])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_found_off_the_best_path(
    cpu_target: str, value: float, frame: int
) -> None:
    case = agreeing_case(0)
    # in reach, and far from where the path is, but for the last
    label = int(case.targets[0, frame // 5 + (15 if frame < 300 else -1)])
    case.scores[frame, 0, label] = value
    assert_same(case, align(case))
    assert torch.all(align(case)[0][0] == -1)
    assert torch.all(align(case)[0][1] >= 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_no_path_reads_may_be_anything(cpu_target: str, value: float) -> None:
    scores = torch.zeros(4, 6)
    target = torch.tensor([1, 2, 3])
    expected = forced_align(scores, target)
    spoiled = scores.clone()
    spoiled[:, 4:] = value
    spoiled[0, 2:] = value
    spoiled[3, 1:3] = value
    for result, right in zip(forced_align(spoiled, target), expected, strict=True):
        assert torch.equal(result, right)
    spoiled[1, 2] = value
    with pytest.raises(ValueError, match=r"row 0 has NaN or .inf"):
        forced_align(spoiled, target)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_blanks_are_read_where_a_path_has_time_for_one(cpu_target: str, value: float) -> None:
    scores = torch.zeros(4, 6)
    scores[2, 0] = value
    assert forced_align(scores, torch.tensor([1, 2, 3, 4]))[0].tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"row 0 has NaN or .inf"):
        forced_align(scores, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_without_a_softmax_are_a_fault(cpu_target: str, value: float) -> None:
    scores = torch.zeros(4, 6)
    scores[2, 5] = value
    with pytest.raises(ValueError, match=r"row 0 has NaN or .inf"):
        forced_align(scores, torch.tensor([1]), from_logits=True)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"targets": torch.tensor([[1, 0, 2]])}, ValueError, "is the blank"),
        ({"targets": torch.tensor([[1, 5, 2]])}, ValueError, "label 5 .* below 5"),
        ({"targets": torch.tensor([[1, -1, 2]])}, ValueError, "label -1 .* no class"),
        ({"targets": torch.ones(1, 3)}, TypeError, "targets must be integers, got torch.float32"),
        ({"targets": torch.ones(2, 3).long()}, ValueError, "a row for each of 1 .* got 2"),
        ({"targets": torch.ones(1, 1, 3).long()}, ValueError, r"1-D or 2-D.*\(1, 1, 3\)"),
        ({"targets": [[1]]}, TypeError, "targets must be a Tensor, got list"),
        ({"input_lengths": [9]}, ValueError, r"input_lengths\[0\] is 9, above the 8 frames"),
        ({"input_lengths": [-1]}, ValueError, r"input_lengths\[0\] is -1, below 0"),
        ({"input_lengths": [8, 8]}, ValueError, "one length for each of 1 utterances, got 2"),
        ({"input_lengths": 8}, TypeError, "input_lengths must be a Tensor, list or tuple, got int"),
        ({"target_lengths": torch.tensor([4])}, ValueError, r"\[0\] is 4, above the 3 labels"),
        ({"target_lengths": torch.tensor([-2])}, ValueError, r"target_lengths\[0\] is -2, below 0"),
        ({"target_lengths": torch.tensor([1.0])}, TypeError, "integers, got torch.float32"),
        ({"blank": 5}, ValueError, "blank is 5, which must be at least 0 and below the 5"),
        ({"blank": 1.5}, TypeError, "blank must be an int, got float"),
        ({"blank": True}, TypeError, "^blank must be an int, got bool"),
        ({"from_logits": 1}, TypeError, "from_logits must be a bool, got int"),
        ({"on_impossible": "skip"}, ValueError, "must be 'raise' or 'mark', got 'skip'"),
        ({"log_probs": torch.zeros(5)}, ValueError, r"2-D or 3-D, got a shape of \(5,\)"),
        ({"log_probs": torch.zeros(1, 0, 5)}, ValueError, "must not be empty"),
        ({"log_probs": torch.zeros(1, 8, 5).int()}, NotImplementedError, "got int32"),
        (
            {"log_probs": torch.zeros(2, 8, 5), "targets": torch.tensor([1, 2])},
            ValueError,
            "target_lengths must be given where targets are concatenated",
        ),
        (
            {"targets": torch.tensor([1, 2, 3]), "target_lengths": [2]},
            ValueError,
            "target_lengths add up to 2, and targets has 3 labels",
        ),
    ],
)
def test_wrong_arguments_are_named(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    arguments = {"log_probs": torch.zeros(1, 8, 5), "targets": torch.tensor([[1, 2, 3]])} | change
    with pytest.raises(error, match=sentence):
        forced_align(**arguments)


def test_meta_tensors_give_shapes() -> None:
    paths, scores = forced_align(torch.zeros(2, 8, 5, device="meta"), torch.ones(2, 3).int())
    assert paths.shape == scores.shape == (2, 8)
    assert (paths.dtype, scores.dtype) == (torch.int32, torch.float32)


def test_torch_func_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"does not support torch.func"):
        torch.func.vmap(lambda x: forced_align(x, torch.tensor([1]))[1])(torch.zeros(2, 4, 3))


def test_merge_tokens() -> None:
    tokens = torch.tensor([0, 3, 3, 0, 3, 2, 2, 2])
    scores = torch.tensor([0.0, -1.0, -2.0, 0.0, -4.0, -1.0, -1.0, -4.0], dtype=torch.float16)
    spans = merge_tokens(tokens, scores)
    assert spans == [TokenSpan(3, 1, 3, -1.5), TokenSpan(3, 4, 5, -4.0), TokenSpan(2, 5, 8, -2.0)]
    assert [len(span) for span in spans] == [2, 1, 3]
    assert merge_tokens(tokens, scores, blank=3)[0] == TokenSpan(0, 0, 1, 0.0)
    assert merge_tokens(tokens[:0], scores[:0]) == []
    with pytest.raises(ValueError, match="tokens and scores must be equally long, got 8 and 7"):
        merge_tokens(tokens, scores[1:])
    with pytest.raises(ValueError, match="scores must be 1-D"):
        merge_tokens(tokens, scores[None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(threads: None, dtype: torch.dtype) -> None:
    case = make_case(409, 60, 9, 30, 20, dtype=dtype)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(align(case, from_logits=True))
    for paths, scores in results[1:]:
        assert torch.equal(paths, results[0][0])
        assert torch.equal(scores, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch_first", [False, True])
def test_operator_passes_torch_checks(dtype: torch.dtype, batch_first: bool) -> None:
    case = make_case(410, dtype=dtype)
    scores = case.scores.transpose(0, 1) if batch_first else case.scores
    rest = (*case.arguments()[1:4], 0, True, batch_first, True)
    torch.library.opcheck(torch.ops.fastctc.forced_align.default, (scores, *rest))
    one = (scores.select(0 if batch_first else 1, 0), case.targets[0].int())
    lengths = case.input_lengths[:1], case.target_lengths[:1]
    torch.library.opcheck(
        torch.ops.fastctc.forced_align.default,
        (one[0], one[1][: int(lengths[1])], *lengths, 0, False, batch_first, True),
    )


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiles_to_one_graph(dynamic: bool) -> None:
    torch._dynamo.reset()

    def step(scores: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        paths, chosen = forced_align(scores * 2, *rest, from_logits=True)
        return paths + 1, chosen.exp()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed, frames in ((411, 30), (412, 41)):
        case = make_case(seed, frames=frames)
        arguments = (case.scores.transpose(0, 1), *case.arguments()[1:4])
        for result, expected in zip(compiled(*arguments), step(*arguments), strict=True):
            torch.testing.assert_close(result, expected)
    torch._dynamo.reset()


@pytest.mark.skipif(ON_CUDA, reason="a device names the row, not the label")
def test_blank_labels_are_named(cpu_target: str) -> None:
    with pytest.raises(ValueError, match="label 2 at position 1 of row 0 is the blank"):
        forced_align(torch.zeros(1, 8, 5), torch.tensor([[1, 2, 3]]), blank=2)


@pytest.mark.skipif(ON_CUDA, reason="of the CPU alone")
def test_reference_serves_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastctc import _align_ops

    case = make_case(413, dtype=torch.bfloat16, fitting=False)
    expected = align(case, from_logits=True)
    _align_ops._kernel.cache_clear()
    monkeypatch.setattr(_align_ops, "_C", None)
    with pytest.warns(RuntimeWarning, match="without its compiled library"):
        result = align(case, from_logits=True)
    _align_ops._kernel.cache_clear()
    assert torch.equal(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1], rtol=1e-6, atol=1e-6)


def test_reference_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="label 0 at position 1 of row 0 is the blank"):
        oracle(Case(torch.zeros(4, 1, 3), torch.tensor([[1, 0]]), *torch.tensor([[4], [2]])))
