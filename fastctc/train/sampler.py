"""Batches of utterances of like length, which can go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from fastctc.train.errors import ConfigError


class BucketSampler(Sampler[list[int]]):
    """Batches from duration buckets: little padding, and a cap on the seconds of a batch.

    Utterances sorted by duration fall into buckets of equal count. A bucket's batches hold at most
    ``batch_size`` utterances and at most ``max_seconds`` seconds, counted with padding. Each epoch
    shuffles within buckets and shuffles the batches, from (seed, epoch) alone. The number of
    batches is the same in every epoch, so a schedule can be laid out before training.

    Args:
        seconds: Duration of each utterance.
        batch_size: Most utterances in a batch.
        max_seconds: Most seconds in a batch; an utterance that is longer makes a batch of its own.
        buckets: How many buckets.
        seed: Seeds the shuffling.
        sortagrad: Whether the first epoch goes from short to long, unshuffled.
        shuffle: False keeps every epoch sorted (for evaluation).
    """

    def __init__(
        self,
        seconds: Sequence[float],
        batch_size: int,
        max_seconds: float,
        *,
        buckets: int = 10,
        seed: int = 0,
        sortagrad: bool = True,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"data.batch_size is {batch_size}: at least 1 is needed")
        if not max_seconds > 0:
            raise ConfigError(f"data.max_batch_seconds is {max_seconds}: it must be above 0")
        if buckets < 1:
            raise ConfigError(f"data.buckets is {buckets}: at least 1 is needed")
        order = np.argsort(np.asarray(seconds), kind="stable")
        self._buckets: list[list[int]] = []
        self._counts: list[int] = []  # batches of each bucket
        for part in np.array_split(order, min(buckets, max(1, len(order)))):
            if len(part):
                longest = float(seconds[int(part[-1])])
                # Nothing bounds a bucket of empty files: reading them says what is wrong.
                most = max_seconds / longest if longest else batch_size
                size = max(1, int(min(batch_size, most)))
                self._buckets.append([int(k) for k in part])
                self._counts.append(-(-len(part) // size))
        self.seed = seed
        self.sortagrad = sortagrad
        self.shuffle = shuffle
        self.epoch = 0
        self._resume_at = (-1, 0)
        # Lightning announces the epoch to `batch_sampler.sampler`.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Leave the first ``batches`` batches out when ``epoch`` is iterated."""
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        self.epoch = epoch
        self._resume_at = (epoch, batches)

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, skip = self._resume_at
        batches = self._batches()
        yield from batches[skip if epoch == self.epoch else 0 :]

    def _batches(self) -> list[list[int]]:
        sort = not self.shuffle or (self.sortagrad and self.epoch == 0)
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for bucket, count in zip(self._buckets, self._counts, strict=True):
            members = np.asarray(bucket)
            if not sort:
                members = rng.permutation(members)
            batches += [[int(k) for k in part] for part in np.array_split(members, count)]
        if not sort:
            batches = [batches[k] for k in rng.permutation(len(batches))]
        return batches
