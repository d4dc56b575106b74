"""Forced alignment on the CPU, ours against torchaudio's or the float64 reference, one thread.

    python -m pytest benchmarks/bench_forced_align.py -c benchmarks/pytest.ini --rootdir . \
        --benchmark-json runs/forced-align.json

``--quick`` takes tiny shapes. torchaudio aligns one utterance a call, so that its side is a loop
over the batch; both start from log-probabilities, or both from logits, which torchaudio needs a
log-softmax of. ``extra_info`` holds the ratio of the medians and its quartiles.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastctc
from benchmarks.bench_ctc_loss import figures
from benchmarks.interleave import choose_rounds, interleave
from benchmarks.shapes import QUICK_WORKLOADS, WORKLOADS, Case, make_case

BUDGET = 1.0
SUBJECTS = ("A", "B", "C", "D", "E", "G")
Result = tuple[torch.Tensor, torch.Tensor]


def ours(case: Case, log_probs: torch.Tensor, from_logits: bool) -> Callable[[], Result]:
    arguments = (case.targets, case.input_lengths, case.target_lengths)
    return lambda: fastctc.forced_align(log_probs, *arguments, from_logits=from_logits)


def torchaudio(case: Case, log_probs: torch.Tensor, from_logits: bool) -> Callable[[], Result]:
    from torchaudio.functional import forced_align

    lengths = list(zip(case.input_lengths.tolist(), case.target_lengths.tolist(), strict=True))

    def step() -> Result:
        scores = log_probs.log_softmax(-1) if from_logits else log_probs
        rows = [
            forced_align(scores[n : n + 1, :frames], case.targets[n : n + 1, :labels])
            for n, (frames, labels) in enumerate(lengths)
        ]
        return torch.cat([path for path, _ in rows]), torch.cat([score for _, score in rows])

    return step


def reference(case: Case, log_probs: torch.Tensor, from_logits: bool) -> Callable[[], Result]:
    from fastctc.reference import forced_align

    scores = log_probs.transpose(0, 1).numpy()
    arguments = (case.targets.numpy(), case.input_lengths.numpy(), case.target_lengths.numpy())

    def step() -> Result:
        paths, chosen, _ = forced_align(scores, *arguments, from_logits=from_logits)
        return torch.from_numpy(paths), torch.from_numpy(chosen)

    return step


PEERS = {"torchaudio": torchaudio, "reference": reference}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("scores", ["log_probs", "logits"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_forced_align(benchmark: Any, subject: str, scores: str, peer: str, quick: bool) -> None:
    if peer == "torchaudio" and importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    if peer == "reference" and scores == "logits":
        pytest.skip("the reference is timed from log-probabilities alone")
    case = make_case((QUICK_WORKLOADS if quick else WORKLOADS)[subject])
    values = case.logits.detach().transpose(0, 1).contiguous()
    if scores == "log_probs":
        values = values.log_softmax(-1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = [make(case, values, scores == "logits") for make in (ours, PEERS[peer])]
        results = [step() for step in steps]
        totals = [result[1].double().sum(1) for result in results]
        torch.testing.assert_close(totals[0], totals[1], rtol=1e-5, atol=1e-3)
        start = time.perf_counter()
        results = [step() for step in steps]
        seconds = time.perf_counter() - start
        rounds = 3 if quick else choose_rounds(seconds, BUDGET, 5, 41)
        samples = interleave(benchmark, *steps, rounds=rounds, rehearse=True)
    finally:
        torch.set_num_threads(threads)
    benchmark.group = f"forced_align {subject} {scores}"
    benchmark.extra_info.update(
        dataclasses.asdict(case.shape) | {"scores": scores, "peer": peer} | figures(samples)
    )
