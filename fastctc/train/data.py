"""Batches for training and evaluation: dataset, padding, and the LightningDataModule."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastctc.train import text as alphabet
from fastctc.train.errors import ConfigError
from fastctc.train.features import FeatureConfig, extract
from fastctc.train.formant import FormantCorpus, Split
from fastctc.train.sampler import BucketSampler
from fastctc.train.sources import FormantSource, Source, load_files

Floats = npt.NDArray[np.float32]

# Fewer utterances than this are made in less time than worker processes take to start.
_PARALLEL_FROM = 400
# So many of the utterances that are left out are named.
_NAMED = 3

_FORMANT_SPLITS: dict[str, tuple[Split, ...]] = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("heldout", "new_words"),
}


@dataclasses.dataclass
class Batch:
    """N padded utterances.

    Attributes:
        features: (N, bins, T) float32, zeros past each length.
        lengths: (N,) int64 frames, on the CPU.
        targets: (N, S) int64 classes, zeros past each length, on the CPU.
        target_lengths: (N,) int64, on the CPU.
        texts: N transcripts ("" where there is none).
        uids: N names, for messages.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    texts: list[str]
    uids: list[str]

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """Move the features; lengths and targets stay, the host reads them."""
        features = self.features.to(device, non_blocking=non_blocking)
        return dataclasses.replace(self, features=features)

    def pin_memory(self) -> Batch:
        """Pin the features, so that they are copied to a GPU while it computes."""
        return dataclasses.replace(self, features=self.features.pin_memory())


@dataclasses.dataclass(frozen=True)
class Sample:
    """One utterance: features (bins, frames), text and name."""

    features: Floats
    text: str
    uid: str


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples into a batch."""
    lengths = torch.tensor([s.features.shape[1] for s in samples])
    labels = [alphabet.encode(s.text) for s in samples]
    target_lengths = torch.tensor([len(row) for row in labels])
    features = torch.zeros(len(samples), samples[0].features.shape[0], int(lengths.max()))
    targets = torch.zeros(len(samples), int(target_lengths.max()), dtype=torch.int64)
    for k, (sample, row) in enumerate(zip(samples, labels, strict=True)):
        features[k, :, : sample.features.shape[1]] = torch.from_numpy(sample.features)
        targets[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return Batch(
        features,
        lengths,
        targets,
        target_lengths,
        [s.text for s in samples],
        [s.uid for s in samples],
    )


class SpeechDataset(Dataset[Sample]):
    """The utterances of a source as features.

    Args:
        source: Where they come from.
        config: Features.
        keep: Which entries, by index; all of them when None.
        least_samples: Audio shorter than this is padded with zeros.
    """

    def __init__(
        self,
        source: Source,
        config: FeatureConfig,
        keep: Sequence[int] | None = None,
        least_samples: int = 0,
    ) -> None:
        self.source = source
        self.config = config
        self.keep = list(range(len(source.entries))) if keep is None else list(keep)
        self.least_samples = least_samples
        self._cache: list[Floats] | None = None

    @property
    def seconds(self) -> list[float]:
        """Duration of each utterance."""
        return [self.source.entries[k].seconds for k in self.keep]

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, index: int) -> Sample:
        entry = self.source.entries[self.keep[index]]
        features = self._cache[index] if self._cache is not None else self._features(index)
        return Sample(features, entry.text or "", entry.uid)

    def _features(self, index: int) -> Floats:
        audio = self.source.audio(self.keep[index], self.config.sample_rate)
        if len(audio) < self.least_samples:
            audio = np.pad(audio, (0, self.least_samples - len(audio)))
        return extract(audio, self.config)

    def preload(self, processes: int, progress: Callable[[int, int], None]) -> None:
        """Make all features now and keep them in memory.

        Args:
            processes: How many to use; 0 or 1 works in this process.
            progress: Called with (done, total) now and then.
        """
        if self._cache is not None:
            return
        cache: list[Floats] = []
        workers = processes if processes > 1 and len(self) >= _PARALLEL_FROM else 0
        for part in DataLoader(self, batch_size=50, num_workers=workers, collate_fn=_features_of):
            cache += part
            progress(len(cache), len(self))
        self._cache = cache


def _features_of(samples: list[Sample]) -> list[Floats]:
    return [s.features for s in samples]


@dataclasses.dataclass(frozen=True)
class FormantConfig:
    """Sizes of the built-in corpus, in utterances.

    Args:
        train: For training.
        validation: For choosing the best checkpoint: held-out speakers and word strings.
        heldout: For testing: the same kind, other ones.
        new_words: For testing: words that training never saw, and held-out speakers.
        pseudo_fraction: Share of random pseudo-words among the words of training texts.
        seed: Makes the corpus.
    """

    train: int = 2000
    validation: int = 150
    heldout: int = 300
    new_words: int = 300
    pseudo_fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "validation", "heldout", "new_words"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"data.formant.{name} is {getattr(self, name)}: at least 1 is needed"
                )
        if not 0 <= self.pseudo_fraction <= 1:
            raise ConfigError(
                f"data.formant.pseudo_fraction is {self.pseudo_fraction}: it must lie in [0, 1]"
            )
        if self.seed < 0:
            raise ConfigError(f"data.formant.seed is {self.seed}: it must not be negative")


_FEATURES = FeatureConfig()
_FORMANT = FormantConfig()


class SpeechDataModule(pl.LightningDataModule):
    """Speech and its transcripts. Without paths: the built-in formant-speech corpus.

    Each path is a JSONL manifest (lines of {"audio": path, "text": str, "duration": seconds}) or a
    folder in LibriSpeech's layout. Several training paths are joined; each test path is a set of
    its own.

    Args:
        features: What the network sees.
        formant: Sizes of the built-in corpus.
        train: Training data; leave it out to use the built-in corpus.
        validation: Validation data.
        test: Test sets.
        predict: Audio files, folders of them, or manifests (no text needed).
        batch_size: Most utterances in a batch.
        max_batch_seconds: Most seconds of audio in a batch, counted with padding.
        buckets: Duration buckets.
        sortagrad: First epoch from short to long utterances.
        min_seconds: Shorter training utterances are left out (elsewhere padded with silence).
        max_seconds: Longer training utterances are left out.
        resample: Resample audio at other rates; false: refuse it.
        num_workers: Processes that load audio files during training. The built-in corpus is made
            once, before training, by as many processes as there are cores, and kept in memory.
        seed: Seeds the shuffling.
    """

    def __init__(
        self,
        features: FeatureConfig = _FEATURES,
        formant: FormantConfig = _FORMANT,
        train: list[str] | None = None,
        validation: list[str] | None = None,
        test: list[str] | None = None,
        predict: list[str] | None = None,
        batch_size: int = 16,
        max_batch_seconds: float = 240.0,
        buckets: int = 10,
        sortagrad: bool = True,
        min_seconds: float = 0.2,
        max_seconds: float = 35.0,
        resample: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.formant = formant
        self.paths = {
            "train": train or [],
            "validation": validation or [],
            "test": test or [],
            "predict": predict or [],
        }
        self.batch_size = batch_size
        self.max_batch_seconds = max_batch_seconds
        self.bucket_count = buckets
        self.sortagrad = sortagrad
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.resample = resample
        self.num_workers = num_workers
        self.seed = seed
        if num_workers < 0 or seed < 0:
            raise ConfigError(
                f"data.num_workers is {num_workers} and data.seed {seed}: neither may be negative"
            )
        if not 0 <= min_seconds < max_seconds:
            raise ConfigError(
                f"data.min_seconds is {min_seconds} and data.max_seconds {max_seconds}: the first "
                "must be the smaller"
            )
        #: Called with (name of the set, done, total) while the built-in corpus is made.
        self.on_progress: Callable[[str, int, int], None] = lambda name, done, total: None
        self._datasets: dict[str, list[SpeechDataset]] = {}
        self._resume_at = (0, 0)
        # Values that cannot work are refused here, before any data is made.
        BucketSampler([1.0], batch_size, max_batch_seconds, buckets=buckets)

    def setup(self, stage: str) -> None:
        """Make or open the sets that ``stage`` (fit, validate, test, predict) needs."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ConfigError(
                f"trainer.devices gives {self.trainer.world_size} processes: the batches are made "
                "for one (set trainer.devices to 1)"
            )
        needed = {"fit": ["train", "validation"], "validate": ["validation"]}.get(stage, [stage])
        for role in needed:
            if role not in self._datasets:
                self._datasets[role] = self._open(role)

    def set_names(self, role: str) -> list[str]:
        """Return the names of the sets behind ``role``, in the order of its loaders."""
        return [d.source.name for d in self._datasets[role]]

    def texts(self, role: str) -> list[str]:
        """Return the transcripts of the sets behind ``role``, of what is not left out."""
        datasets = self._datasets[role]
        return [d.source.entries[k].text or "" for d in datasets for k in d.keep]

    def _open(self, role: str) -> list[SpeechDataset]:
        paths = self.paths[role]
        if role == "predict":
            if not paths:
                raise ConfigError("nothing to predict: name audio files, folders or manifests")
            sources: list[Source] = [
                load_files(p, resample=self.resample, transcripts=False) for p in paths
            ]
            return [self._dataset(s) for s in sources]
        if paths:
            sources = [load_files(p, resample=self.resample) for p in paths]
            return [self._trimmed(s) if role == "train" else self._dataset(s) for s in sources]
        if self.paths["train"]:
            raise ConfigError(
                f"data.train names files but data.{role} does not: name a set for {role}, or leave "
                "data.train out to use the built-in corpus"
            )
        return [self._formant(s) for s in _FORMANT_SPLITS[role]]

    def _formant(self, split: Split) -> SpeechDataset:
        config = self.formant

        def corpus(which: Split, avoid: Sequence[str] = ()) -> FormantCorpus:
            return FormantCorpus(
                which,
                getattr(config, which),
                config.seed,
                pseudo_fraction=config.pseudo_fraction,
                avoid=avoid,
            )

        avoid: list[str] = []
        if split in ("validation", "heldout"):
            avoid += corpus("train").texts
        if split == "heldout":
            avoid += corpus("validation", avoid).texts
        dataset = self._dataset(FormantSource(corpus(split, avoid)))
        dataset.preload(
            os.cpu_count() or 1, lambda done, total: self.on_progress(split, done, total)
        )
        return dataset

    def _dataset(self, source: Source, keep: Sequence[int] | None = None) -> SpeechDataset:
        least = int(self.min_seconds * self.features.sample_rate)
        return SpeechDataset(source, self.features, keep, least)

    def _trimmed(self, source: Source) -> SpeechDataset:
        """Leave out what is too short or too long to train on, and say how much that is."""
        keep = [
            k
            for k, entry in enumerate(source.entries)
            if self.min_seconds <= entry.seconds <= self.max_seconds
        ]
        total = len(source.entries)
        if not keep:
            raise ConfigError(
                f"{source.name}: none of {total} utterances lasts {self.min_seconds} to "
                f"{self.max_seconds} s (data.min_seconds, data.max_seconds)"
            )
        if len(keep) < total:
            kept = set(keep)
            out = [e.uid for k, e in enumerate(source.entries) if k not in kept]
            names = ", ".join(out[:_NAMED]) + (", ..." if len(out) > _NAMED else "")
            print(
                f"{source.name}: {len(out)} of {total} utterances left out, they do not last "
                f"{self.min_seconds} to {self.max_seconds} s: {names}",
                flush=True,
            )
        return self._dataset(source, keep)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, bucketed training batches."""
        datasets = self._datasets["train"]
        joined: Any = torch.utils.data.ConcatDataset(datasets)
        seconds = [s for d in datasets for s in d.seconds]
        sampler = BucketSampler(
            seconds,
            self.batch_size,
            self.max_batch_seconds,
            buckets=self.bucket_count,
            seed=self.seed,
            sortagrad=self.sortagrad,
        )
        sampler.resume(*self._resume_at)
        return DataLoader(joined, batch_sampler=sampler, **self._loader_options())

    def state_dict(self) -> dict[str, int]:
        """Return where training stands in the data: the epoch, and how much of it is done."""
        if self.trainer is None:
            return {}
        # Counted once the optimiser has stepped, and before the hooks that save checkpoints.
        done: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"epoch": self.trainer.current_epoch, "batches": int(done.processed)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader go on from there."""
        self._resume_at = (state_dict["epoch"], state_dict["batches"])

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return self._evaluation_loader(self._datasets["validation"])

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return one loader per test set."""
        return [self._evaluation_loader([d]) for d in self._datasets["test"]]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return what to transcribe, in the order given."""
        joined: Any = torch.utils.data.ConcatDataset(self._datasets["predict"])
        return DataLoader(joined, batch_size=1, **self._loader_options())

    def _evaluation_loader(self, datasets: list[SpeechDataset]) -> DataLoader[Any]:
        joined: Any = torch.utils.data.ConcatDataset(datasets)
        seconds = [s for d in datasets for s in d.seconds]
        # Nothing is kept for a backward pass, so a batch may be twice as large.
        sampler = BucketSampler(
            seconds,
            2 * self.batch_size,
            2 * self.max_batch_seconds,
            buckets=self.bucket_count,
            shuffle=False,
        )
        return DataLoader(joined, batch_sampler=sampler, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "collate_fn": collate,
            # Without one of its own, each iterator would draw from the generator that dropout uses,
            # and a resumed run makes fewer iterators.
            "generator": torch.Generator().manual_seed(self.seed),
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
        }
