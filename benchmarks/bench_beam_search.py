"""The beam search on one thread against other decoders, measured in turn.

Rows of one thread are in processor time: on a machine that is shared, a call of a millisecond
slips between the others' turns, and one of a second does not. Two threads are in elapsed time.

``python -m benchmarks.bench_beam_search`` prints a table and, with ``--out FILE.json``, stores it.
Each timed call follows an untimed one of its own side. Ours is the call that users make: from a
tensor to hypotheses with texts and timesteps, without confidences, which no peer has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.decoder_peers import PEERS, alphabet
from benchmarks.machine import describe_cpu
from fastctc import CTCDecoder, ctc_loss

FRAMES = 1000
SHORT = 60
ROUNDS = 7


@dataclass(frozen=True)
class Row:
    """One comparison: a peer, or None for two threads of ours against one."""

    classes: int
    beam: int
    peer: str | None
    tokens: int | None = None
    target: float | None = None

    @property
    def id(self) -> str:
        peer = (self.peer or "threads").replace(" ", "-")
        return f"C{self.classes}-beam{self.beam}-{peer}"


FLASHLIGHT, NO_CUT, CUT, PYCTC = PEERS
ROWS = [
    *[Row(29, b, FLASHLIGHT, None, t) for b, t in ((10, 40.0), (50, 90.0), (100, 120.0))],
    *[Row(29, b, NO_CUT, None, t) for b, t in ((10, 30.0), (50, 90.0), (100, 130.0))],
    *[Row(29, b, CUT, None, t) for b, t in ((10, 5.0), (50, 10.0), (100, 15.0))],
    *[Row(29, b, PYCTC, None, 80.0) for b in (10, 50, 100)],
    *[Row(c, 50, FLASHLIGHT, 20, 20.0) for c in (500, 5000)],
    *[Row(c, 50, None, None, 1.8) for c in (29, 5000)],
]


def peaky(frames: int, classes: int, seed: int = 0) -> torch.Tensor:
    """(T, C) log-probabilities as of a trained model: blanks, and every sixth frame a token.

    A third of the tokens has a rival of about its own probability.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(frames, classes, generator=generator) * 1.5
    logits[:, 0] += 8
    for t in range(3, frames - 3, 6):
        token, rival = torch.randint(1, classes, (2,), generator=generator).tolist()
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
    for _ in range(rounds):
        for k, step in enumerate((ours, peer)):
            step()
            start = clock()
            step()
            seconds[k].append(clock() - start)
    return seconds


def exact_score(log_probs: torch.Tensor, labels: list[int]) -> float:
    """The natural log of all paths of the labels."""
    loss = ctc_loss(
        log_probs[:, None], torch.tensor([labels]), [len(log_probs)], [len(labels)], reduction="sum"
    )
    return -float(loss)


def measure(row: Row, frames: int, rounds: int) -> dict[str, Any]:
    log_probs = peaky(frames, row.classes)
    decoder = CTCDecoder(
        alphabet(row.classes), beam_size=row.beam, top_k=row.tokens, confidence=False
    )
    torch.set_num_threads(1)
    if row.peer is None:
        batch = torch.stack([peaky(frames, row.classes, seed) for seed in range(16)])

        def threads(count: int) -> Callable[[], Any]:
            def step() -> None:
                torch.set_num_threads(count)
                decoder.decode_tensors(batch)

            return step

        ours, peer = threads(2), threads(1)
        scores: dict[str, float] = {}
    else:
        emissions = log_probs[None]
        ours = lambda: decoder(emissions)  # noqa: E731
        peer = PEERS[row.peer].prepare(log_probs, row.beam, row.tokens)
        scores = {
            "our_score": exact_score(log_probs, decoder(emissions)[0][0].tokens),
            "peer_score": exact_score(log_probs, peer()),
        }
    clock = time.perf_counter if row.peer is None else time.thread_time
    seconds = alternate(ours, peer, rounds, clock)
    ratios = [theirs / mine for mine, theirs in zip(*seconds, strict=True)]
    return {
        **asdict(row),
        "frames": frames,
        "ours_ms": statistics.median(seconds[0]) * 1e3,
        "peer_ms": statistics.median(seconds[1]) * 1e3,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **scores,
    }


def rows_of(kind: str, **options: Any) -> list[Row]:
    """The rows of the suite."""
    del kind, options
    return ROWS


def test_beam(benchmark: Any, row: Row, quick: bool) -> None:
    """A row as ``python -m benchmarks --suite beam`` runs it."""
    if row.peer is not None and not PEERS[row.peer].is_there():
        pytest.skip(f"{row.peer}: pip install -r benchmarks/requirements-decoders.txt")
    arguments = (row, SHORT, 1) if quick else (row, FRAMES, ROUNDS)
    result = benchmark.pedantic(measure, args=arguments, rounds=1)
    benchmark.group = "beam search"
    benchmark.extra_info.update({"kind": "beam", "quick": quick, **result})


def line(result: dict[str, Any]) -> str:
    name = result["peer"] or "1 thread (ours: 2, N = 16)"
    cut = f", top {result['tokens']}" if result["tokens"] else ""
    return (
        f"| {result['classes']} | {result['beam']} | {name}{cut} | {result['ours_ms']:.3f} "
        f"| {result['peer_ms']:.2f} | {result['ratio']:.1f} | {result['target']:g} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_beam_search")
    parser.add_argument("--quick", action="store_true", help="short inputs: a smoke test")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="store the results as JSON")
    parser.add_argument("-k", default="", help="only rows whose peer has this in its name")
    options = parser.parse_args(arguments)
    results = []
    print("| C | beam | against | ours, ms | theirs, ms | times faster | target |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        if options.k not in (row.peer or "threads"):
            continue
        if row.peer is not None and not PEERS[row.peer].is_there():
            print(
                f"{row.peer}: not installed (benchmarks/requirements-decoders.txt)", file=sys.stderr
            )
            continue
        result = measure(
            row, SHORT if options.quick else FRAMES, 1 if options.quick else options.rounds
        )
        print(line(result), flush=True)
        results.append(result)
    if options.out:
        document = {"cpu": describe_cpu(), "results": results}
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
