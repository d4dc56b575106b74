"""The LightningModule: features, network, loss, metrics, and what to do about NaN."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

import fastctc
from fastctc.train import text as alphabet
from fastctc.train.data import Batch
from fastctc.train.errors import ConfigError, NonFiniteError
from fastctc.train.features import FeatureConfig, FrontEnd
from fastctc.train.metrics import (
    BlankStatistics,
    ErrorRates,
    StuckWatch,
    beam_decode,
    blank_statistics,
    greedy_decode,
)
from fastctc.train.model import DeepSpeech2, NetworkConfig
from fastctc.train.optim import OptimConfig, build_optimizer

# So many batches in a row without a finite loss mean that the weights are lost.
_GIVE_UP_AFTER = 20
_SAMPLES = 5

_NETWORK = NetworkConfig()
_OPTIM = OptimConfig()
_FEATURES = FeatureConfig()


class Evaluation:
    """Sums over one pass through one set."""

    def __init__(self) -> None:
        self.rates = ErrorRates()
        #: The same of the module's other `decoders`, by name.
        self.others: dict[str, ErrorRates] = {}
        self.loss = 0.0
        self.utterances = 0
        #: Those whose loss counts: their text fits into their audio.
        self.aligned = 0
        self.blank_frames = 0.0
        self.frames = 0
        #: (reference, hypothesis) of the first utterances of the set.
        self.samples: list[tuple[str, str]] = []

    def metrics(self) -> dict[str, float]:
        """Return loss per utterance (nats per label), CER, WER (fractions) and blank fraction.

        NaN stands for what no utterance gave.
        """
        return {
            "loss": self.loss / self.aligned if self.aligned else float("nan"),
            "cer": self.rates.cer,
            "wer": self.rates.wer,
            "blank_fraction": self.blank_frames / max(self.frames, 1),
        }


def alignable(lengths: Tensor, batch: Batch) -> Tensor:
    """Return (N,) bool: whether a text fits into so many output frames.

    A label that repeats the one before it needs a blank between them.
    """
    same = batch.targets[:, 1:] == batch.targets[:, :-1]
    # Columns are counted rather than derived from a width, which is 0 where all texts are empty.
    second = torch.arange(same.shape[1]) + 1
    repeats = (same & (second < batch.target_lengths[:, None])).sum(1)
    return lengths >= batch.target_lengths + repeats


class SpeechModule(pl.LightningModule):
    """DeepSpeech2 trained with fastctc's loss.

    The objective is the mean over a batch of each utterance's loss divided by its labels.

    Args:
        network: Sizes of the network.
        optim: Optimiser and schedule.
        features: What the network sees of the audio; the command line takes it from
            ``data.features``.
        nan_policy: A loss or gradient that is NaN, or a text that cannot be aligned because it is
            too long for its audio: ``skip`` leaves it out with a warning that names the utterances,
            ``raise`` stops with the same words.
    """

    def __init__(
        self,
        network: NetworkConfig = _NETWORK,
        optim: OptimConfig = _OPTIM,
        features: FeatureConfig = _FEATURES,
        nan_policy: Literal["skip", "raise"] = "skip",
    ) -> None:
        super().__init__()
        if nan_policy not in ("skip", "raise"):
            raise ConfigError(f"model.nan_policy is {nan_policy!r}: skip and raise exist")
        self.optim_config = optim
        self.nan_policy = nan_policy
        self.front_end = FrontEnd(features)
        self.network = DeepSpeech2(network, features.bins, alphabet.CLASSES)
        #: The settings of the run as JSON; checkpoints carry them, so they can be used alone.
        self.config_text = ""
        #: Figures of the newest step with a finite loss, and which step that was.
        self.newest: dict[str, Tensor | float] = {}
        self.newest_step = -1
        self.stuck = StuckWatch()
        self.evaluations: dict[str, Evaluation] = {}
        #: What `predict_step` decodes with; None: each frame's best class.
        self.decoder: fastctc.CTCDecoder | None = None
        #: What evaluations decode with besides each frame's best class, by name.
        self.decoders: dict[str, fastctc.CTCDecoder] = {}
        self._uids: list[str] = []
        self._lost_batches = 0
        self._named: set[str] = set()
        self._rng: Tensor | None = None

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits (T, N, classes) and output lengths (N,)."""
        features, frames = self.front_end(batch.audio, batch.lengths)
        scores, lengths = self.network(features, frames)
        return scores, lengths

    def losses(self, scores: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """Return each utterance's loss per label: (N,), 0 where no alignment exists."""
        # Where fastctc was built without CUDA, scores of a GPU make the trip to the CPU, and their
        # gradient finds its way back.
        served = scores.is_cuda and fastctc.build_info()["cuda"]
        loss = fastctc.ctc_loss(
            scores if served else scores.cpu(),
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=alphabet.BLANK,
            reduction="none",
            zero_infinity=True,
            from_logits=True,
        )
        return loss / batch.target_lengths.clamp(min=1).to(loss)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        self._uids = batch.uids
        scores, lengths = self(batch)
        self._check_alignments(lengths, batch)
        losses = self.losses(scores, lengths, batch)
        lost = (~torch.isfinite(losses.detach())).nonzero()[:, 0].tolist()
        if lost:
            self._lost_batches += 1
            self._not_finite("the loss", [batch.uids[k] for k in lost])
            return None
        self._lost_batches = 0
        loss = losses.mean()
        blank = blank_statistics(scores, lengths, int(batch.target_lengths.sum()))
        self._log_step(losses.detach()[alignable(lengths, batch)].mean(), blank)
        if (advice := self.stuck.update(blank)) is not None:
            self.print(advice)
        return loss

    def _log_step(self, loss: Tensor, blank: BlankStatistics) -> None:
        self._log_where()
        self.newest = {
            "train/loss": loss,
            "train/blank_fraction": blank.fraction,
            "train/blank_posterior": blank.posterior,
            "train/frames_per_label": blank.frames_per_label,
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.newest_step = self.global_step
        for name, value in self.newest.items():
            shown = name in ("train/loss", "train/blank_fraction")
            self.log(name, value, prog_bar=shown, batch_size=1)
        self.newest["epoch"] = self.current_epoch  # Lightning adds this to what it logs

    def _log_where(self) -> None:
        # What Lightning would take, its own count of batches, is one too high in a resumed run.
        self.log("step", float(self.global_step), batch_size=1)

    def _check_alignments(self, lengths: Tensor, batch: Batch) -> None:
        """Name the utterances whose text cannot be aligned; the loss leaves them out."""
        short = (~alignable(lengths, batch)).nonzero()[:, 0].tolist()
        names = [
            f"{batch.uids[k]} ({int(batch.target_lengths[k])} labels, {int(lengths[k])} frames)"
            for k in short
        ]
        if names and self.nan_policy == "raise":
            raise NonFiniteError(f"no alignment exists for {', '.join(names)}")
        new = [n for n in names if n not in self._named]
        if new:
            self._named.update(new)
            self.print(f"left out, no alignment exists: {', '.join(new)}")

    def _not_finite(self, what: str, uids: list[str]) -> None:
        message = f"{what} is not finite for {', '.join(uids)} (step {self.global_step})"
        if self.nan_policy == "raise":
            raise NonFiniteError(message)
        if self._lost_batches >= _GIVE_UP_AFTER:
            raise NonFiniteError(
                f"{message}; so for {self._lost_batches} batches in a row: the weights are lost. A "
                "lower learning rate or stronger gradient clipping usually helps"
            )
        self.print(f"{message}; the batch is skipped")

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as ``trainer.gradient_clip_val`` says, log the norm, drop what is not finite."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        if not parameters:  # the batch was skipped
            return
        if gradient_clip_algorithm == "value" and gradient_clip_val:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            # An infinite limit clips nothing and still gives the norm.
            limit = gradient_clip_val or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not torch.isfinite(norm):
            self._not_finite("the gradient", self._uids)
            for parameter in parameters:
                parameter.grad = None  # the optimiser passes over it
        self.newest["train/grad_norm"] = norm
        self.log("train/grad_norm", norm, batch_size=1)

    def _evaluate(self, batch: Batch, name: str) -> None:
        scores, lengths = self(batch)
        texts = greedy_decode(scores, lengths)
        losses = self.losses(scores, lengths, batch)
        blank = blank_statistics(scores, lengths, int(batch.target_lengths.sum()))
        sums = self.evaluations.setdefault(name, Evaluation())
        sums.rates.add(batch.texts, texts)
        for decoding, decoder in self.decoders.items():
            rates = sums.others.setdefault(decoding, ErrorRates())
            rates.add(batch.texts, beam_decode(decoder, scores, lengths))
        sums.loss += float(losses.sum())
        sums.aligned += int(alignable(lengths, batch).sum())
        sums.utterances += len(texts)
        frames = int(lengths.sum())
        sums.blank_frames += blank.fraction * frames
        sums.frames += frames
        sums.samples += zip(batch.texts, texts, strict=True)
        # The sets come sorted by length: keep some of all lengths.
        if len(sums.samples) > _SAMPLES:
            sums.samples = sums.samples[:: -(-len(sums.samples) // _SAMPLES)]

    def on_validation_epoch_start(self) -> None:
        self.evaluations = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self._log_where()
        self._log_evaluations({"val": "val"})

    def on_test_epoch_start(self) -> None:
        self.evaluations = {}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, self._test_names()[dataloader_idx])

    def on_test_epoch_end(self) -> None:
        self._log_evaluations({name: f"test/{name}" for name in self.evaluations})

    def _test_names(self) -> list[str]:
        module: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        names: list[str] = module.set_names("test")
        return names

    def _log_evaluations(self, prefixes: dict[str, str]) -> None:
        for name, prefix in prefixes.items():
            if name in self.evaluations:
                metrics = self.evaluations[name].metrics()
                self.log_dict({f"{prefix}/{k}": v for k, v in metrics.items()}, batch_size=1)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Return {"audio": name, "text": transcript} of each utterance."""
        scores, lengths = self(batch)
        if self.decoder is None:
            texts = greedy_decode(scores, lengths)
        else:
            texts = beam_decode(self.decoder, scores, lengths)
        return [{"audio": u, "text": t} for u, t in zip(batch.uids, texts, strict=True)]

    def configure_optimizers(self) -> Any:
        total = self.trainer.estimated_stepping_batches
        return build_optimizer(self.optim_config, self.parameters(), int(min(total, 2**62)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fastctc_config"] = self.config_text
        # Dropout draws from this generator; a resumed run goes on where it stood.
        checkpoint["fastctc_rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = {k: v.shape for k, v in checkpoint["state_dict"].items()}
        if theirs != {k: v.shape for k, v in self.state_dict().items()}:
            raise ConfigError(
                "the checkpoint's network is another than the settings describe; without --config "
                "and --model options the checkpoint's own settings are used"
            )
        self._rng = checkpoint.get("fastctc_rng")

    def on_train_start(self) -> None:
        if self._rng is not None:
            torch.set_rng_state(self._rng.cpu())
            self._rng = None
