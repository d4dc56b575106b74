"""Random and hostile input of forced alignment, also run under the sanitizers.

Every tensor is as large as its contents, so that a read past its end is seen there.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from align_cases import align, assert_same
from loss_cases import make_case
from test_loss_fuzz import DTYPES, EXTREMES, random_case, spoil, within_range

import fastctc
from fastctc import _align_ops, _checks
from fastctc._backends import BACKENDS

ROUNDS = 60


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_batches(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(500)
    for _ in range(ROUNDS):
        case = random_case(rng, dtype)
        if case.scores.shape[2] == 1:
            continue
        from_logits = bool(rng.random() < 0.5)
        assert_same(case, align(case, from_logits=from_logits), from_logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_checkpoints(cpu_target: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose back-pointers take a little more than a mebibyte."""
    monkeypatch.setattr(fastctc.config, "max_workspace_mb", 1)
    rng = np.random.default_rng(504)
    for labels in (400, 505, 1200):
        frames = 2**20 * 4 // labels + int(rng.integers(200))
        case = make_case(505, frames, 1, 9, labels, dtype=dtype, ragged=False)
        assert_same(case, align(case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(501)
    faults = []
    for _ in range(ROUNDS):
        case = random_case(rng, dtype)
        hit = torch.from_numpy(rng.random(case.scores.shape) < rng.choice([0.001, 0.02, 1.0]))
        values = torch.from_numpy(rng.choice(EXTREMES, case.scores.shape))
        if dtype is not torch.float64:  # where sums of doubles are exact enough to compare paths
            values[values.abs() > 1e10] = -math.inf
        case.scores[hit] = values[hit].to(dtype)
        if case.scores.shape[2] > 1:
            faults += assert_same(case, align(case)).tolist()
            align(case, from_logits=True)
    assert {0, 1, 2} == set(faults)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_and_labels_out_of_range(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(502)
    refused = 0
    for _ in range(4 * ROUNDS):
        case = random_case(rng, dtype)
        spoil(rng, case)
        if within_range(case):
            continue
        with pytest.raises(ValueError, match=r"lengths|targets: label"):
            align(case)
        refused += 1
    assert refused > ROUNDS


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_outside_the_results(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(503)
    margin, mark = 70, -7
    for _ in range(ROUNDS // 2):
        case = random_case(rng, dtype)
        frames, batch, classes = case.scores.shape
        if classes == 1:
            continue
        options = _align_ops.AlignOptions(case.blank, True, False, True)
        problem = BACKENDS["cpu"].prepare(*case.arguments()[:4], _align_ops.loss_options(options))
        inside = slice(margin, margin + batch * frames)
        sizes = (batch * frames, batch * frames, batch)
        kinds = (torch.int64, _checks.loss_dtype(dtype), torch.int32)
        buffers = [
            torch.full((size + 2 * margin,), mark, dtype=kind)
            for size, kind in zip(sizes, kinds, strict=True)
        ]
        status = _align_ops._kernel()(
            *problem.arguments[:14], *(buffer[margin:].data_ptr() for buffer in buffers), 1
        )
        assert status is None
        paths, scores = align(case, from_logits=True)
        assert torch.equal(buffers[0][inside], paths.flatten())
        assert torch.equal(buffers[1][inside].nan_to_num(9), scores.flatten().nan_to_num(9))
        for size, buffer in zip(sizes, buffers, strict=True):
            buffer[margin : margin + size] = mark
            assert torch.all(buffer == mark)
