"""Shared batch statistics under DistributedDataParallel: two processes against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastctc

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo, by which the two processes talk",
)

# Utterances of the first process, and how many frames they have: uneven shares, and a share
# without a valid frame.
CASES = {"ragged": (1, [9, 12, 1, 0, 7]), "one without a frame": (2, [0, 0, 12, 5, 3])}
STEPS = 3


class Model(nn.Module):
    """A channel norm below a linear layer and a feature norm, so that gradients cross both."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = fastctc.SpectrogramNorm(6, layout="NTBEF", log="log1p")
        self.mix = nn.Linear(24, 10)
        self.features = fastctc.SequenceBatchNorm(10)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = self.mix(self.channels(x, lengths).flatten(2))
        return self.out(torch.tanh(self.features(h, lengths)))


def batches(lengths: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Inputs whose padding is NaN, and the weights of their outputs in the loss."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(STEPS):
        x = torch.rand((len(lengths), 12, 2, 3, 4), generator=generator, dtype=torch.float64) * 9
        weights = torch.randn((len(lengths), 12, 3), generator=generator, dtype=torch.float64)
        for n, frames in enumerate(lengths):
            x[n, frames:] = torch.nan
            weights[n, frames:] = 0.0
        made.append((x, weights))
    return made


def train(model: nn.Module, lengths: list[int], mine: slice, share: int) -> dict[str, Any]:
    """Some steps of SGD on the loss of a slice, times the number of processes, which DDP divides
    by; the gradients of the last step, and the state after it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, weights in batches(lengths):
        optimizer.zero_grad()
        y = model(x[mine], torch.tensor(lengths)[mine])
        (share * (y * weights[mine]).sum() / sum(lengths)).backward()
        optimizer.step()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    state = {name.removeprefix("module."): v for name, v in model.state_dict().items()}
    return {"gradients": gradients, "state": state}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = {}
    for case, (first, lengths) in CASES.items():
        torch.manual_seed(rank)  # the weights of the first process count, as DDP has it
        model = DistributedDataParallel(Model().double())
        mine = slice(0, first) if rank == 0 else slice(first, None)
        found[case] = train(model, lengths, mine, 2)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2, join=True)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for case, (_, lengths) in CASES.items():
        torch.manual_seed(0)
        alone = train(Model().double(), lengths, slice(None), 1)
        for found in both:
            torch.testing.assert_close(found[case], alone, rtol=1e-9, atol=1e-11)
