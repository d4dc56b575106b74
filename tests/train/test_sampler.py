"""Buckets: every utterance once per epoch, within the caps, resumable anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from fastctc.train.errors import ConfigError
from fastctc.train.sampler import BucketSampler

SECONDS = np.random.default_rng(0).uniform(0.5, 12, 203).tolist()


def _epoch(sampler: BucketSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(("batch_size", "cap"), [(8, 1e9), (64, 40.0), (1, 1.0), (500, 1e9)])
def test_each_utterance_once_and_no_batch_over_the_caps(batch_size: int, cap: float) -> None:
    sampler = BucketSampler(SECONDS, batch_size, cap)
    for epoch in range(3):
        batches = _epoch(sampler, epoch)
        assert sorted(k for b in batches for k in b) == list(range(len(SECONDS)))
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(batch) <= batch_size
            padded = len(batch) * max(SECONDS[k] for k in batch)
            assert padded <= cap or len(batch) == 1


def test_the_first_epoch_goes_from_short_to_long_and_the_others_do_not() -> None:
    sampler = BucketSampler(SECONDS, 8, 1e9)
    longest = [max(SECONDS[k] for k in b) for b in _epoch(sampler, 0)]
    assert longest == sorted(longest)
    later = [max(SECONDS[k] for k in b) for b in _epoch(sampler, 1)]
    assert later != sorted(later)
    shuffled = BucketSampler(SECONDS, 8, 1e9, sortagrad=False)
    first = [max(SECONDS[k] for k in b) for b in _epoch(shuffled, 0)]
    assert first != sorted(first)


def test_lengths_within_a_batch_are_alike() -> None:
    sampler = BucketSampler(SECONDS, 8, 1e9)
    padded = sum(len(b) * max(SECONDS[k] for k in b) for b in _epoch(sampler, 1))
    assert padded < 1.15 * sum(SECONDS)


def test_epochs_differ_and_come_back() -> None:
    one, other = BucketSampler(SECONDS, 8, 1e9), BucketSampler(SECONDS, 8, 1e9)
    assert _epoch(one, 1) != _epoch(one, 2)
    assert _epoch(one, 2) == _epoch(other, 2)
    assert _epoch(BucketSampler(SECONDS, 8, 1e9, seed=1), 2) != _epoch(other, 2)


def test_resuming_leaves_out_what_is_done_and_only_once() -> None:
    whole = BucketSampler(SECONDS, 8, 1e9)
    rest = BucketSampler(SECONDS, 8, 1e9)
    rest.resume(2, 5)
    assert len(rest) == len(whole)
    assert list(rest) == _epoch(whole, 2)[5:]
    assert _epoch(rest, 3) == _epoch(whole, 3)


def test_resuming_after_the_last_batch_begins_the_next_epoch() -> None:
    whole = BucketSampler(SECONDS, 8, 1e9)
    rest = BucketSampler(SECONDS, 8, 1e9)
    rest.resume(1, len(rest))
    assert list(rest) == _epoch(whole, 2)


def test_empty_files_make_batches_too() -> None:
    assert sorted(k for b in BucketSampler([0.0] * 5, 2, 1.0) for k in b) == list(range(5))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size is 0"):
        BucketSampler(SECONDS, 0, 1.0)
    with pytest.raises(ConfigError, match=r"data\.max_batch_seconds is 0"):
        BucketSampler(SECONDS, 1, 0.0)
    with pytest.raises(ConfigError, match=r"data\.buckets is 0"):
        BucketSampler(SECONDS, 1, 1.0, buckets=0)
