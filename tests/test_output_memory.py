"""Large results lie in memory that is kept when they are freed, and never in that of one alive."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
import torch

import fastctc
from fastctc._native import _C

pytestmark = pytest.mark.skipif(_C is None, reason="nothing is kept without the compiled module")
SHAPE = (4, 257, 301)  # above a megabyte, and of a size that no other test uses


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_what_is_kept_is_bounded() -> None:
    """Ever new sizes push the old ones out."""
    resident = []
    for rows in range(60):
        y = fastctc.spectrogram_norm(torch.ones(1, 6 * 1024 + rows, 1024))  # 24 MiB each
        del y
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert resident[-1] - resident[29] < 60 * 2**20


def test_a_shape_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape"):
        _C.empty_output((0, 3), (3, 1), 2, 32)
