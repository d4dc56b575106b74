"""The beam search on one thread against other decoders and against itself, measured in turn.

Rows of one thread are in processor time: on a machine that is shared, a call of a millisecond
slips between the others' turns, and one of a second does not. Two threads are in elapsed time, and
the shortest of all rounds: whatever else runs on two cores takes one from them.

Each timed call follows an untimed one of its own side. Ours is the call that users make: from a
tensor to hypotheses with texts and timesteps, without confidences, which no peer has.

The rows of what a language model and hotwords cost are on two kinds of emissions: tokens at random,
as in the other rows, and the letters of a text. A model agrees with the latter and takes sides
between the labellings, so that more of them come and go.
"""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch

from benchmarks.decoder_peers import PEERS, alphabet
from benchmarks.decoder_texts import TOKENS, character_model, phrases, spoken
from benchmarks.machine import usable_cpus
from fastctc import CTCDecoder, ctc_loss

FRAMES = 1000
SHORT = 60
ROUNDS = 7  # of peers, whose calls take a second
ROUNDS_OF_OURS = 61
THREAD_ROUNDS = 201  # what else runs on one of the cores is seldom still for long


@dataclass(frozen=True)
class Row:
    """One comparison of ours with a peer, or of ours with more to do and with less."""

    classes: int
    beam: int
    against: str
    tokens: int | None = None
    target: float | None = None
    spoken: bool = False  # emissions of a text; else of tokens at random

    @property
    def is_cost(self) -> bool:
        """The ratio is that of our times, and not to be above the target."""
        return self.against in (NO_MODEL, NO_HOTWORDS, NO_COMMON_HOTWORDS)

    @property
    def id(self) -> str:
        words = [f"C{self.classes}", f"beam{self.beam}", *re.findall(r"[\w-]+", self.against)]
        return "-".join([*words, *["text"] * self.spoken])


ONE_THREAD = "1 thread (ours: 2, N = 16)"
NO_MODEL = "no model (ours: 4-gram of characters)"
NO_HOTWORDS = "the 4-gram alone (ours: and 5000 hotwords)"
NO_COMMON_HOTWORDS = "the 4-gram alone (ours: and 5000 hotwords, among them most words of the text)"
PHRASES = 5000
FLASHLIGHT, NO_CUT, CUT, PYCTC = PEERS
ROWS = [
    *[Row(29, b, FLASHLIGHT, None, t) for b, t in ((10, 40.0), (50, 90.0), (100, 120.0))],
    *[Row(29, b, NO_CUT, None, t) for b, t in ((10, 30.0), (50, 90.0), (100, 130.0))],
    *[Row(29, b, CUT, None, t) for b, t in ((10, 5.0), (50, 10.0), (100, 15.0))],
    *[Row(29, b, PYCTC, None, 80.0) for b in (10, 50, 100)],
    *[Row(c, 50, FLASHLIGHT, 20, 20.0) for c in (500, 5000)],
    *[Row(c, 50, ONE_THREAD, None, 1.8) for c in (29, 5000)],
    *[Row(29, b, NO_MODEL, None, 3.0, spoken) for spoken in (False, True) for b in (10, 50, 100)],
    *[
        Row(29, b, NO_HOTWORDS, None, 1.2, spoken)
        for spoken in (False, True)
        for b in (10, 50, 100)
    ],
    *[Row(29, b, NO_COMMON_HOTWORDS, spoken=True) for b in (10, 50, 100)],
]


def peaky(
    frames: int, classes: int, seed: int = 0, text: Sequence[int] | None = None
) -> torch.Tensor:
    """(T, C) log-probabilities as of a trained model: blanks, and every sixth frame a token.

    The tokens are those of the text, or random ones. A third of them has a rival of about its own
    probability.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(frames, classes, generator=generator) * 1.5
    logits[:, 0] += 8
    for i, t in enumerate(range(3, frames - 3, 6)):
        token, rival = torch.randint(1, classes, (2,), generator=generator).tolist()
        if text is not None:
            token = text[i]
        logits[t, token] += 12
        logits[t + 1, token] += 9
        if t % 3 == 0 and t % 9 == 0:
            logits[t, rival] += 12
    return logits.log_softmax(-1)


def alternate(
    ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Seconds of each, in turn; every timed call follows an untimed one of its side."""
    seconds: list[list[float]] = [[], []]
    gc.collect()
    gc.disable()  # what it would walk through is mostly the measurement's own
    try:
        for _ in range(rounds):
            for k, step in enumerate((ours, peer)):
                step()
                start = clock()
                step()
                seconds[k].append(clock() - start)
    finally:
        gc.enable()
    return seconds


def exact_score(log_probs: torch.Tensor, labels: list[int]) -> float:
    """The natural log of all paths of the labels."""
    loss = ctc_loss(
        log_probs[:, None], torch.tensor([labels]), [len(log_probs)], [len(labels)], reduction="sum"
    )
    return -float(loss)


def in_threads(decoder: CTCDecoder, frames: int, classes: int, count: int) -> Callable[[], Any]:
    batch = torch.stack([peaky(frames, classes, seed) for seed in range(16)])

    def step() -> None:
        torch.set_num_threads(count)
        decoder.decode_tensors(batch)

    return step


def steps(row: Row, frames: int) -> tuple[Callable[[], Any], Callable[[], Any], dict[str, float]]:
    """Ours, what it is measured against, and the exact scores of what both find."""

    def ours(**models: Any) -> CTCDecoder:
        letters = TOKENS if row.is_cost else alphabet(row.classes)
        return CTCDecoder(letters, beam_size=row.beam, top_k=row.tokens, confidence=False, **models)

    plain = ours()
    if row.against == ONE_THREAD:
        calls = [in_threads(plain, frames, row.classes, count) for count in (2, 1)]
        return calls[0], calls[1], {}
    log_probs = peaky(frames, row.classes, text=spoken(frames) if row.spoken else None)
    emissions = log_probs[None]
    if row.is_cost:
        model = {"lm": character_model(4), "lm_unit": "token"}
        less, more = plain, ours(**model)
        if row.against != NO_MODEL:
            listed = phrases(PHRASES, rare=row.against == NO_HOTWORDS)
            less, more = more, ours(**model, hotwords=listed)
        return lambda: more(emissions), lambda: less(emissions), {}
    peer = PEERS[row.against].prepare(log_probs, row.beam, row.tokens)
    scores = {
        "our_score": exact_score(log_probs, plain(emissions)[0][0].tokens),
        "peer_score": exact_score(log_probs, peer()),
    }
    return lambda: plain(emissions), peer, scores


def measure(row: Row, frames: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    ours, peer, scores = steps(row, frames)
    clock = time.perf_counter if row.against == ONE_THREAD else time.thread_time
    seconds = alternate(ours, peer, rounds, clock)
    ratios = [theirs / mine for mine, theirs in zip(*seconds, strict=True)]
    if row.is_cost:
        ratios = [1 / ratio for ratio in ratios]
    usual = min if row.against == ONE_THREAD else statistics.median
    mine, theirs = (usual(side) * 1e3 for side in seconds)
    return {
        **asdict(row),
        "is_cost": row.is_cost,
        "frames": frames,
        "ours_ms": mine,
        "peer_ms": theirs,
        "ratio": theirs / mine if row.against == ONE_THREAD else statistics.median(ratios),
        "ratios": ratios,
        **scores,
    }


def rows_of(kind: str, **options: Any) -> list[Row]:
    """The rows of the suite."""
    del kind, options
    return ROWS


def test_beam(benchmark: Any, row: Row, quick: bool) -> None:
    """A row as ``python -m benchmarks --suite beam`` runs it."""
    if row.against in PEERS and not PEERS[row.against].is_there():
        pytest.skip(f"{row.against}: pip install -r benchmarks/requirements-decoders.txt")
    if row.against == ONE_THREAD and usable_cpus() < 2:
        pytest.skip("two threads need two CPUs")
    rounds = ROUNDS if row.against in PEERS else ROUNDS_OF_OURS
    if row.against == ONE_THREAD:
        rounds = THREAD_ROUNDS
    arguments = (row, SHORT, 1) if quick else (row, FRAMES, rounds)
    result = benchmark.pedantic(measure, args=arguments, rounds=1)
    benchmark.group = "beam search"
    benchmark.extra_info.update({"kind": "beam", "quick": quick, **result})
