"""Large results lie in memory that is kept when they are freed, and never in that of one alive."""

from __future__ import annotations

import gc
import mmap
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastctc
from fastctc._native import _C

pytestmark = pytest.mark.skipif(_C is None, reason="nothing is kept without the compiled module")
SHAPE = (4, 257, 301)  # above a megabyte, and of a size that no other test uses


@pytest.fixture
def few_kept() -> Iterator[int]:
    """Bytes of a low bound, with nothing kept at first."""
    before = fastctc.config.max_kept_output_mb
    fastctc.config.max_kept_output_mb = 0
    fastctc.config.max_kept_output_mb = 32
    yield 32 << 20
    fastctc.config.max_kept_output_mb = before


def output(bytes_: int) -> object:
    return _C.empty_output((bytes_,), (1,), 1, 8)


def normalised(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return fastctc.spectrogram_norm(torch.randn(SHAPE, generator=generator).to(dtype))


def test_freed_memory_serves_the_next_result() -> None:
    y = normalised()
    before = y.data_ptr()
    del y
    gc.collect()
    assert normalised().data_ptr() == before


def test_results_that_are_alive_keep_their_memory_and_values() -> None:
    alive = [normalised(seed) for seed in range(6)]
    copies = [y.clone() for y in alive]
    part = normalised(9)[1]  # a view keeps the whole alive
    copy = part.clone()
    del alive[2:4], copies[2:4]
    more = [normalised(seed + 20) for seed in range(4)]
    everything = [*alive, *more]
    assert len({y.data_ptr() for y in everything}) == len(everything)
    for y, wanted in zip(alive, copies, strict=True):
        assert torch.equal(y, wanted)
    assert torch.equal(part, copy)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_results_are_laid_out_as_torch_lays_them_out(dtype: torch.dtype) -> None:
    shape = (8, 300, 2, 4, 33)
    x = torch.randn(shape).to(dtype)
    strided = x.permute(1, 0, 3, 4, 2)
    for layout, each in [("NTBEF", x), ("TNEFB", strided), ("NTBEF", x[:, ::2])]:
        y = fastctc.spectrogram_norm(each, layout=layout, over="NT")
        assert y.dtype is dtype
        assert y.stride() == torch.empty_like(each).stride()
    assert y.resize_(2, 2).shape == (2, 2)


def test_results_cannot_grow_and_their_clones_can() -> None:
    more = 2 * normalised().numel()
    assert normalised().clone().resize_(more).numel() == more
    with pytest.raises(RuntimeError, match="not resizable"):
        normalised().resize_(more)


def test_threads_share_what_is_kept() -> None:
    wanted = [normalised(seed) for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(20):
            if not torch.equal(normalised(seed), wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_kept_is_bounded(few_kept: int) -> None:
    """Ever new sizes push the old ones out, down to a switch at 0 that keeps none."""
    draw, alive = random.Random(0), []
    most = 0
    for _ in range(300):
        alive.append(output(draw.randrange(1 << 20, 12 << 20)))
        if len(alive) > 4:
            del alive[draw.randrange(4)]
        most = max(most, _C.kept_output_bytes())
        assert most <= few_kept
    assert most > few_kept // 2
    fastctc.config.max_kept_output_mb = 8
    assert _C.kept_output_bytes() <= 8 << 20
    fastctc.config.max_kept_output_mb = 0
    alive.clear()
    assert _C.kept_output_bytes() == 0


def test_kept_memory_serves_sizes_that_fill_most_of_it(few_kept: int) -> None:
    output(10 << 20)
    for megabytes, left in [(10, 0), (9, 0), (7, 0), (6, 10), (11, 10)]:
        served = output((megabytes << 20) - 5)
        assert _C.kept_output_bytes() == left << 20
        del served
        fastctc.config.max_kept_output_mb = 0
        fastctc.config.max_kept_output_mb = 32
        output(10 << 20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_freed_memory_goes_back_to_the_system(few_kept: int, threads: None) -> None:
    """Pieces are no part of the heap, which would keep those between others that are alive."""
    torch.set_num_threads(1)  # a thread that first asks for memory has a heap of its own mapped

    def mapped() -> int:  # unlike the resident pages, which Linux counts lazily, this is exact
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    x, alive = torch.ones(1, 2048 + 40, 1024), []
    fastctc.spectrogram_norm(x)
    before = mapped()
    for rows in range(40):
        alive.append(fastctc.spectrogram_norm(x[:, : 2048 + rows]))  # 8 MiB each
    assert mapped() - before > 250 << 20
    del alive[::2], alive[5:]
    assert mapped() - before < 160 << 20


def test_results_that_no_memory_is_left_for_are_refused() -> None:
    with pytest.raises(MemoryError, match=f"no memory for a result of {2**60} bytes"):
        output(2**60)


@pytest.mark.parametrize("shape", [(2, 2**60 + 1, 1), (2, 2**59, 1), (2, 2**61, 1)])
def test_results_that_no_number_of_64_bits_counts_are_refused(shape: tuple[int, ...]) -> None:
    x = torch.zeros(1, 1, 1, dtype=torch.float64).expand(shape)
    with pytest.raises(MemoryError, match="no memory for a result of"):
        fastctc.spectrogram_norm(x)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_what_is_kept_is_released_before_a_result_is_refused() -> None:
    code = """
import resource
from fastctc._native import _C
_C.empty_output((400 << 20,), (1,), 1, 8)
assert _C.kept_output_bytes() == 400 << 20
pages = int(open("/proc/self/statm").read().split()[0])
limit = (pages * resource.getpagesize()) + (20 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
_C.empty_output((100 << 20,), (1,), 1, 8)
print(_C.kept_output_bytes() >> 20)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("100", "")


def test_a_shape_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape"):
        _C.empty_output((0, 3), (3, 1), 2, 32)
