"""Time two contenders in turn, so that both meet the same machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Seconds that the timed half of a row's rounds should take, and how many there are at least and at
# most.
BUDGET = 1.0
FEWEST_ROUNDS = 5
FEWEST_ROUNDS_OF_SLOW = 3  # where a single round takes longer than half the budget
MOST_ROUNDS = 41
# How long a thread takes to wake depends on what the machine's host does at that moment: the short
# rows of two threads need as many rounds as the time allows.
MOST_ROUNDS_OF_THREADS = 401
QUICK_ROUNDS = 3

# Worker threads of OpenMP spin for some milliseconds after a parallel region. With as many
# threads as cores they would slow down whichever contender comes next.
PAUSE = 0.01

Step = Callable[[], object]


class Pedantic(Protocol):
    """What is used of pytest-benchmark's fixture."""

    disabled: bool
    stats: Any

    def pedantic(self, target: Step, *, setup: Step, rounds: int) -> Any: ...


@dataclass(frozen=True)
class Samples:
    """Seconds per call in the order measured; round i is ``peer[i]``, then ``ours[i]``.

    ``cpu_share`` is the processor time that this process got per second measured: with one
    thread, well below 1 says that other programs were in the way. The rehearsals are the calls
    just before, empty where there were none.
    """

    ours: tuple[float, ...]
    peer: tuple[float, ...]
    cpu_share: float
    our_rehearsals: tuple[float, ...] = ()
    peer_rehearsals: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the ratio of the medians."""
        return statistics.median(self.peer) / statistics.median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile of the ratios of the single rounds."""
        ratios = sorted(p / o for p, o in zip(self.peer, self.ours, strict=True))
        if len(ratios) == 1:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


def choose_rounds(seconds_per_round: float, budget: float, fewest: int, most: int) -> int:
    """Rounds that fit into ``budget`` seconds, within the bounds (``fewest`` wins)."""
    return max(fewest, min(most, int(budget / max(seconds_per_round, 1e-9))))


def interleave(
    benchmark: Pedantic,
    ours: Step,
    peer: Step,
    *,
    rounds: int,
    calls: int = 1,
    pause: float = 0.0,
    rehearse: bool = False,
    before_ours: Step | None = None,
    before_peer: Step | None = None,
) -> Samples:
    """Measure peer, ours, peer, ours ... for ``rounds`` rounds of ``calls`` calls each.

    Ours is what pytest-benchmark times; the peer runs in its ``setup``, on the same clock. Each
    side starts after ``pause`` seconds of idling, so that worker threads which the other side
    left spinning have gone to sleep, and after its own untimed ``before_*`` step. With
    ``rehearse`` each timed call follows one of the same side that does not count, and so meets the
    caches and the memory that a loop of its own would: right after the other side, which touches
    fifty times as much memory, most of a short call would be spent getting pages back.
    """
    peer_seconds: list[float] = []
    rehearsals: dict[Step, list[float]] = {ours: [], peer: []}
    cpu_seconds = 0.0

    def many(step: Step) -> None:
        for _ in range(calls):
            step()

    def prepare(step: Step, before: Step | None) -> None:
        if before is not None:
            before()
        if pause:
            time.sleep(pause)
        if rehearse:
            start = time.perf_counter()
            many(step)
            rehearsals[step].append((time.perf_counter() - start) / calls)

    def measure_peer() -> None:
        prepare(peer, before_peer)
        nonlocal cpu_seconds
        cpu_start, start = time.process_time(), time.perf_counter()
        many(peer)
        peer_seconds.append(time.perf_counter() - start)
        cpu_seconds += time.process_time() - cpu_start
        prepare(ours, before_ours)

    def measure_ours() -> None:
        nonlocal cpu_seconds
        cpu_start = time.process_time()
        many(ours)
        cpu_seconds += time.process_time() - cpu_start

    benchmark.pedantic(measure_ours, setup=measure_peer, rounds=rounds)
    if benchmark.disabled:
        raise RuntimeError("benchmarks measure nothing under --benchmark-disable")
    ours_seconds = benchmark.stats.stats.data
    return Samples(
        tuple(seconds / calls for seconds in ours_seconds),
        tuple(seconds / calls for seconds in peer_seconds),
        cpu_seconds / (sum(ours_seconds) + sum(peer_seconds)),
        tuple(rehearsals[ours]),
        tuple(rehearsals[peer]),
    )


def rounds_for(ours: Step, peer: Step, quick: bool, most: int = MOST_ROUNDS) -> int:
    """How many rounds fit the time that a row may take, from one warm round."""
    if quick:
        return QUICK_ROUNDS
    start = time.perf_counter()
    peer()
    ours()
    seconds = time.perf_counter() - start
    fewest = FEWEST_ROUNDS if seconds < BUDGET / 2 else FEWEST_ROUNDS_OF_SLOW
    return choose_rounds(seconds, BUDGET, fewest, most)


def figures(samples: Samples, calls: int = 1) -> dict[str, Any]:
    """What a line of a table says about its measurement."""
    low, high = samples.spread
    return {
        "rounds": len(samples.ours),
        "calls": calls,
        "ours_s": statistics.median(samples.ours),
        "peer_s": statistics.median(samples.peer),
        "ours_fastest_s": min(samples.ours),
        "peer_fastest_s": min(samples.peer),
        "ratio": samples.ratio,
        "ratio_low": low,
        "ratio_high": high,
        "cpu_share": samples.cpu_share,
        "peer_samples_s": rounded(samples.peer),
        "ours_rehearsals_s": rounded(samples.our_rehearsals),
        "peer_rehearsals_s": rounded(samples.peer_rehearsals),
    }


def rounded(seconds: Sequence[float]) -> list[float]:
    """Samples as they are stored."""
    return [float(f"{each:.4g}") for each in seconds]


def finite(value: float) -> float | None:
    """``value``, or None for what JSON has no number for."""
    return value if math.isfinite(value) else None
