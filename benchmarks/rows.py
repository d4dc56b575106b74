"""Which combinations the suite measures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from benchmarks.accuracy import CASE_NAMES
from benchmarks.peers import MODES, PEERS, SCORES
from benchmarks.shapes import WORKLOADS

DEFAULT_CPU_TARGETS = ("auto", "avx2")
ALL_CPU_TARGETS = ("auto", "avx512", "avx2", "neon", "vec128", "portable")
DEFAULT_PEERS = ("torch",)

HALF_WORKLOADS = ("B", "C")


@dataclass(frozen=True)
class Row:
    """One line of a table. ``cpu_target`` "auto" is the best that the machine has."""

    kind: str
    subject: str
    scores: str = "logits"
    mode: str = "train"
    threads: int = 1
    cpu_target: str = "auto"
    lengths: str = "full"
    dtype: str = "float32"
    peer: str = "torch"

    @property
    def id(self) -> str:
        subject = self.subject.replace(" ", "-")
        shared = f"{subject}-{self.scores}-{self.mode}-{self.threads}t-{self.cpu_target}"
        return f"{shared}-{self.lengths}-{self.dtype}-{self.peer}"


def parse_cpu_targets(text: str) -> tuple[str, ...]:
    """The value of --cpu-targets; "auto" always comes along, as it carries the main rows."""
    if text == "all":
        return ALL_CPU_TARGETS
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in ALL_CPU_TARGETS:
            raise ValueError(
                f"--cpu-targets: {name!r} is none of {', '.join(ALL_CPU_TARGETS)} or 'all'"
            )
    return ("auto", *(name for name in names if name != "auto"))


def parse_peers(text: str) -> tuple[str, ...]:
    """The value of --peers."""
    names = tuple(PEERS) if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers: {name!r} is none of {', '.join(PEERS)} or 'all'")
    return names


def _speed_rows(cpu_targets: tuple[str, ...], peers: tuple[str, ...]) -> list[Row]:
    rows = []
    for subject in WORKLOADS:  # outermost, because one workload's inputs are kept at a time
        if "torch" in peers:
            for scores, mode, threads in product(SCORES, MODES, (1, 2)):
                rows.append(Row("speed", subject, scores, mode, threads))
            for target, scores in product(cpu_targets, SCORES):
                if target != "auto":
                    rows.append(Row("speed", subject, scores, cpu_target=target))
        for peer in peers:
            if peer != "torch":
                for mode in MODES:
                    rows.append(Row("speed", subject, mode=mode, peer=peer))
        if "torch" in peers:
            for scores in SCORES:
                rows.append(Row("speed", subject, scores, lengths="ragged"))
            if subject in HALF_WORKLOADS:
                for dtype in ("bfloat16", "float16"):
                    rows.append(Row("speed", subject, dtype=dtype))
    return rows


def rows_of(kind: str, *, cpu_targets: tuple[str, ...], peers: tuple[str, ...]) -> list[Row]:
    """The rows of one kind of benchmark, in the order to run them in."""
    match kind:
        case "speed":
            return _speed_rows(cpu_targets, peers)
        case "scaling":
            return [Row("scaling", subject, threads=2, peer="fastctc") for subject in WORKLOADS]
        case "fixed_cost":
            return [
                Row("fixed_cost", "fixed", scores, mode) for scores, mode in product(SCORES, MODES)
            ]
        case "memory":
            return [Row("memory", subject) for subject in WORKLOADS]
        case "accuracy":
            return [
                Row("accuracy", name, scores, cpu_target=target)
                for name, scores, target in product(CASE_NAMES, SCORES, cpu_targets)
            ]
    raise ValueError(f"unknown kind of row: {kind!r}")
