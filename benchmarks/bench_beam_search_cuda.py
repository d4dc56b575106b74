"""The beam search on a GPU, beside torchaudio's CUDA decoder where that is installed, and the CPU.

``python -m benchmarks.bench_beam_search_cuda --out FILE.json``. One step is `decode_tensors` on
log-probabilities on the GPU, which nobody waits for; "step" is calls one after the other, "graph" a
CUDA graph of ours replayed, the GPU's time alone. Peers find neither timesteps nor confidences, so
the rows that are compared leave them out. The floor is the time in which the emissions could be
read once at the bandwidth of a copy; rows of one utterance are bound by the chain of its frames.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastctc
from benchmarks.bench_beam_search import peaky
from benchmarks.bench_ctc_loss_cuda import (
    ROUNDS,
    Contender,
    copy_bandwidth,
    kernel_seconds,
    peak_bytes,
    time_graph,
    time_steps,
)
from benchmarks.decoder_peers import alphabet

RATIO = 10.0  # times torchaudio's CUDA decoder, on the batch
LATENCY_US = 1.0  # a frame, of one utterance of 29 classes


@dataclass(frozen=True)
class Row:
    """One workload; with `times`, timesteps and confidences too."""

    name: str
    batch: int
    frames: int
    classes: int
    beam: int
    nbest: int
    times: bool = False


ROWS = [
    Row("batch", 32, 1000, 500, 10, 10),
    Row("batch with timesteps", 32, 1000, 500, 10, 10, times=True),
    Row("batch, wide beam", 32, 1000, 500, 100, 10),
    Row("large vocabulary", 8, 1000, 50_000, 10, 1),
    Row("one utterance", 1, 1000, 29, 10, 1),
    Row("one utterance, wide beam", 1, 1000, 29, 100, 1),
]
QUICK_ROWS = [Row("batch", 2, 40, 50, 10, 10), Row("batch with timesteps", 2, 40, 29, 40, 2, True)]


def emissions_of(row: Row) -> Tensor:
    """(N, T, C) log-probabilities of a sharp model, on the host."""
    return torch.stack([peaky(row.frames, row.classes, seed) for seed in range(row.batch)])


def decoder_of(row: Row) -> fastctc.CTCDecoder:
    return fastctc.CTCDecoder(
        alphabet(row.classes),
        beam_size=row.beam,
        nbest=row.nbest,
        timesteps=row.times,
        confidence=row.times,
    )


def torchaudio(row: Row, emissions: Tensor) -> tuple[Contender | None, str]:
    """Its CUDA decoder, without the skipping of blank frames, or why there is none."""
    if importlib.util.find_spec("torchaudio") is None:
        return None, "torchaudio is not installed"
    try:
        from torchaudio.models.decoder import cuda_ctc_decoder

        decoder = cuda_ctc_decoder(
            alphabet(row.classes),
            nbest=row.nbest,
            beam_size=row.beam,
            blank_skip_threshold=1.0,
        )
        lengths = torch.full((row.batch,), row.frames, dtype=torch.int32, device="cuda")
        decoder(emissions, lengths)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return Contender("torchaudio", lambda: decoder(emissions, lengths)), ""


def cpu_seconds(decoder: fastctc.CTCDecoder, emissions: Tensor, rounds: int) -> float:
    """The same call on the host, over all its threads."""
    decoder.decode_tensors(emissions)
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        decoder.decode_tensors(emissions)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def measure_row(row: Row, rounds: int, bandwidth: float) -> dict[str, Any]:
    """One workload's line."""
    host, decoder = emissions_of(row), decoder_of(row)
    there = host.cuda()
    us = Contender("fastctc", lambda: decoder.decode_tensors(there))
    best, expected = decoder(there)[0][0], decoder(host)[0][0]
    if best.tokens != expected.tokens or abs(best.score - expected.score) > 1e-2:
        raise AssertionError(f"{row.name}: the GPU's best hypothesis is not the CPU's")
    peer, why_not = (None, "without timesteps only") if row.times else torchaudio(row, there)
    times = time_steps([us, peer] if peer else [us], rounds)
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    graph = statistics.median(time_graph(us, rounds))
    floor = there.numel() * there.element_size() / bandwidth
    on_cpu = cpu_seconds(decoder, host, min(rounds, 3))
    return {
        **asdict(row),
        "ours_step_s": medians["fastctc"],
        "ours_graph_s": graph,
        "graph_us_per_frame": graph / row.frames * 1e6,
        "byte_floor_s": floor,
        "share_of_floor": floor / graph,
        "ours_kernels_s": kernel_seconds(us),
        "ours_peak_bytes": peak_bytes(us),
        "peer_step_s": medians.get("torchaudio"),
        "peer_missing": why_not or None,
        "ratio": medians["torchaudio"] / medians["fastctc"] if peer else None,
        "cpu_threads": torch.get_num_threads(),
        "cpu_step_s": on_cpu,
        "cpu_ratio": on_cpu / medians["fastctc"],
    }


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    ratio = row["peer_missing"] if row["ratio"] is None else f"{row['ratio']:.1f}"
    return (
        f"{row['name']}: {row['ours_step_s'] * 1e6:.0f}, {row['ours_graph_s'] * 1e6:.0f}, "
        f"{row['graph_us_per_frame']:.3f}, {row['share_of_floor']:.1%}, {row['cpu_ratio']:.1f}, "
        f"{ratio}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a smoke test")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or not fastctc.build_info()["cuda"]:
        print("needs a CUDA device, and fastctc built with CUDA", file=sys.stderr)
        return 1
    rounds = 3 if options.quick else ROUNDS
    bandwidth = copy_bandwidth(rounds)
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "fastctc": fastctc.build_info(),
        "quick": options.quick,
        "copy_bytes_per_s": bandwidth,
        "targets": {"ratio": RATIO, "latency_us": LATENCY_US},
        "rows": [],
    }
    print(
        "workload: us per batch, us of a graph, us a frame, share of the byte floor, times as fast "
        f"as the CPU, times as fast as torchaudio (should be {RATIO:.0f} on the batch)"
    )
    for row in QUICK_ROWS if options.quick else ROWS:
        report["rows"].append(measure_row(row, rounds, bandwidth))
        print(told(report["rows"][-1]), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
