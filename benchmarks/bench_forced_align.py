"""Forced alignment on the CPU, ours against torchaudio's or the float64 reference, one thread.

Run by ``python -m benchmarks --suite align``. torchaudio aligns one utterance a call, so that its
side is a loop over the batch; both start from log-probabilities, or both from logits, which
torchaudio needs a log-softmax of. Scores are random; in some rows they agree with the text, as
those of a trained model do.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fastctc
from benchmarks.interleave import figures, interleave, rounds_for
from benchmarks.shapes import QUICK_WORKLOADS, WORKLOADS, Case, make_case

SUBJECTS = ("A", "B", "C", "D", "E", "G")
SCORES = ("log_probs", "agreeing", "logits")
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


@dataclass(frozen=True)
class Row:
    """One comparison; ``cpu_target`` "auto" is the best that the machine has."""

    subject: str
    scores: str
    peer: str
    kind: str = "align"
    threads: int = 1
    cpu_target: str = "auto"

    @property
    def id(self) -> str:
        return f"{self.subject}-{self.scores}-{self.peer}-{self.threads}t"


def rows_of(kind: str, *, cpu_targets: tuple[str, ...], peers: tuple[str, ...]) -> list[Row]:
    """The rows in the order to run them in; targets and peers chosen for the loss do not matter."""
    del kind, cpu_targets, peers
    rows = []
    for subject in SUBJECTS:
        # The reference is timed from log-probabilities alone.
        rows += [Row(subject, scores, "torchaudio") for scores in SCORES]
        rows.append(Row(subject, "log_probs", "reference"))
    return rows


def agree(logits: torch.Tensor, case: Case) -> None:
    """Raise the blank, and at even distances the labels."""
    logits[..., 0] += 8
    for n, (frames, labels) in enumerate(
        zip(case.input_lengths.tolist(), case.target_lengths.tolist(), strict=True)
    ):
        at = (torch.arange(labels) * frames + frames // 2) // max(labels, 1)
        logits[n, at, case.targets[n, :labels]] += 14


def test_align(benchmark: Any, row: Row, quick: bool, threads: int, cpu_target: str) -> None:
    if row.peer == "torchaudio" and importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed: pip install torchaudio")
    case = make_case((QUICK_WORKLOADS if quick else WORKLOADS)[row.subject])
    values = case.logits.detach().transpose(0, 1).contiguous()
    if row.scores == "agreeing":
        agree(values, case)
    if row.scores != "logits":
        values = values.log_softmax(-1)
    steps = [make(case, values, row.scores == "logits") for make in (ours, PEERS[row.peer])]
    totals = [step()[1].double().sum(1) for step in steps]
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-5, atol=1e-3)
    samples = interleave(benchmark, *steps, rounds=rounds_for(*steps, quick), rehearse=True)
    benchmark.group = f"forced_align {row.subject} {row.scores}"
    shape = case.shape
    benchmark.extra_info.update(
        {
            **dataclasses.asdict(row),
            "workload": row.subject,
            "T": shape.frames,
            "N": shape.batch,
            "C": shape.classes,
            "S": shape.labels,
            "cpu_target_used": cpu_target,
            "quick": quick,
            **figures(samples),
        }
    )
