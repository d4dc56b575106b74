"""DeepSpeech2: masked convolutions, sequence-wise batch norm, summed bidirectional GRUs.

Frames past an utterance's end never reach its valid frames, neither through a convolution nor
through batch statistics: the output for an utterance does not depend on how far it was padded.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastctc.norm import SequenceBatchNorm
from fastctc.train.errors import ConfigError

_HARDTANH_TOP = 20.0


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """One convolution: sizes are (frequency, time)."""

    channels: int = 32
    kernel: tuple[int, int] = (41, 11)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 10)

    def __post_init__(self) -> None:
        if self.channels < 1 or min(self.kernel) < 1 or min(self.stride) < 1:
            raise ConfigError(f"{self}: channels, kernel and stride must be at least 1")
        if min(self.padding) < 0:
            raise ConfigError(f"{self}: padding must not be negative")

    def size(self, axis: int, n: int) -> int:
        """Return how many outputs ``n`` inputs make along frequency (0) or time (1)."""
        return (n + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1


def _deepspeech2_convs() -> list[ConvConfig]:
    return [
        ConvConfig(32, (41, 11), (2, 2), (0, 10)),
        ConvConfig(32, (21, 11), (2, 1), (0, 0)),
    ]


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network. The defaults are the full DeepSpeech2.

    Args:
        convs: The convolutions, first to last.
        hidden: Units per direction of each GRU.
        layers: Bidirectional GRU layers.
        dropout: Between recurrent layers; 0 switches it off.
        batch_norm: Normalise after each convolution, before each GRU but the first and before the
            output. Without it training sits at all-blank output for longer.
    """

    convs: list[ConvConfig] = dataclasses.field(default_factory=_deepspeech2_convs)
    hidden: int = 800
    layers: int = 5
    dropout: float = 0.0
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if not self.convs:
            raise ConfigError("network.convs is empty: at least one convolution is needed")
        if self.hidden < 1 or self.layers < 1:
            raise ConfigError(
                f"network.hidden is {self.hidden} and network.layers {self.layers}: "
                "both must be at least 1"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network.dropout is {self.dropout}: it must lie in [0, 1)")

    def output_length(self, frames: int) -> int:
        """Return how many output frames ``frames`` feature frames make (0 or less: too short)."""
        for conv in self.convs:
            frames = conv.size(1, frames)
        return frames


class MaskedConv(nn.Module):
    """Convolution, batch norm and clipped ReLU; frames past each length are 0 on return."""

    def __init__(self, config: ConvConfig, inputs: int, batch_norm: bool) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(
            inputs, config.channels, config.kernel, config.stride, config.padding,
            bias=not batch_norm,
        )  # fmt: skip
        self.norm = SequenceBatchNorm(config.channels, layout="NEFT") if batch_norm else None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, F, T), 0 past ``lengths`` (N,), to the same one layer up."""
        x = self.conv(x)
        lengths = torch.div(
            lengths + 2 * self.config.padding[1] - self.config.kernel[1],
            self.config.stride[1],
            rounding_mode="floor",
        ) + 1  # fmt: skip
        if self.norm is not None:
            # Padding leaves the norm as 0, and stays so.
            return F.hardtanh(self.norm(x, lengths), 0.0, _HARDTANH_TOP), lengths
        mask = _mask(lengths, x.shape[3]).to(x.dtype)[:, None, None]
        return F.hardtanh(x, 0.0, _HARDTANH_TOP) * mask, lengths


class FrameIndex:
    """Where the valid frames of a padded batch lie.

    The recurrent part works on rows: the M valid frames of all utterances, without padding. A GRU
    wants (T, N, D), and its backward direction wants each utterance turned round within its own
    length; both are one gather away. (torch's packed sequences do the same job, but on a CPU their
    backward pass fills a buffer of all frames with zeros once per time step.)

    Args:
        lengths: (N,) valid frames of each utterance, at least 1, on the CPU.
        device: Where the rows live.
    """

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        self.steps = int(lengths.max())
        self.batch = len(lengths)
        time = torch.arange(self.steps)[:, None]
        valid = time < lengths
        rows = int(lengths.sum())
        #: (M,) place of each row in the flattened (T, N); the same after turning round.
        self.place = valid.flatten().nonzero()[:, 0].to(device)
        mirrored = (lengths - 1 - time) * self.batch + torch.arange(self.batch)
        self.mirrored_place = mirrored[valid].to(device)
        # Padding takes row M, which is zeros.
        number = torch.full((self.steps * self.batch,), rows)
        number[valid.flatten()] = torch.arange(rows)
        self.row = number.to(device)
        back = torch.full_like(number, rows)
        back[mirrored[valid]] = torch.arange(rows)
        self.mirrored_row = back.to(device)

    def padded(self, rows: Tensor, mirrored: bool) -> Tensor:
        """Return (T, N, D) from (M, D), with zeros for padding."""
        index = self.mirrored_row if mirrored else self.row
        padded = F.pad(rows, (0, 0, 0, 1)).index_select(0, index)
        return padded.view(self.steps, self.batch, rows.shape[1])

    def rows(self, padded: Tensor, mirrored: bool) -> Tensor:
        """Return (M, D) from (T, N, D)."""
        place = self.mirrored_place if mirrored else self.place
        return padded.reshape(-1, padded.shape[2]).index_select(0, place)


class SummedBiGRU(nn.Module):
    """Bidirectional GRU without bias whose two directions are added: (M, inputs) to (M, hidden)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.GRU(inputs, hidden, bias=False)
        self.back = nn.GRU(inputs, hidden, bias=False)

    def forward(self, rows: Tensor, index: FrameIndex) -> Tensor:
        ahead = self.ahead(index.padded(rows, mirrored=False))[0]
        back = self.back(index.padded(rows, mirrored=True))[0]
        return index.rows(ahead, mirrored=False) + index.rows(back, mirrored=True)


class DeepSpeech2(nn.Module):
    """The network from features to class scores.

    Args:
        config: Sizes.
        bins: Feature bins per frame.
        classes: Outputs per frame, the blank included.

    Raises:
        ConfigError: The convolutions leave no frequency bin.
    """

    def __init__(self, config: NetworkConfig, bins: int, classes: int) -> None:
        super().__init__()
        self.config = config
        inputs, size = 1, bins
        self.convs = nn.ModuleList()
        for conv in config.convs:
            self.convs.append(MaskedConv(conv, inputs, config.batch_norm))
            inputs, size = conv.channels, conv.size(0, size)
            if size < 1:
                raise ConfigError(
                    f"{bins} feature bins are too few for the convolutions of network.convs"
                )
        width, hidden = inputs * size, config.hidden
        self.grus = nn.ModuleList(
            SummedBiGRU(hidden if k else width, hidden) for k in range(config.layers)
        )
        # One per GRU: it feeds the next GRU, and the last one feeds the output.
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(hidden) if config.batch_norm else nn.Identity()
            for _ in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (T_out, N, classes), time first and not normalised, and lengths (N,).

        Scores past an output length are the output layer's bias.

        Args:
            features: (N, bins, T). What it holds past ``lengths`` does not matter.
            lengths: (N,) int64 on the CPU, each long enough for one output frame.

        Raises:
            ValueError: An utterance is too short for the convolutions.
        """
        out_lengths = torch.tensor([self.config.output_length(n) for n in lengths.tolist()])
        if int(out_lengths.min()) < 1:
            row = int(out_lengths.argmin())
            raise ValueError(
                f"utterance {row} of the batch has {int(lengths[row])} frames, too few for one "
                "output frame"
            )
        on_device = lengths.to(features.device)
        mask = _mask(on_device, features.shape[2])
        x = features.masked_fill(~mask[:, None], 0.0)[:, None]
        for conv in self.convs:
            x, on_device = conv(x, on_device)
        index = FrameIndex(out_lengths, features.device)
        rows = index.rows(x.flatten(1, 2).permute(2, 0, 1)[: index.steps], mirrored=False)
        for gru, norm in zip(self.grus, self.norms, strict=True):
            rows = self.dropout(norm(gru(rows, index)))
        return self.output(index.padded(rows, mirrored=False)), out_lengths


def _mask(lengths: Tensor, width: int) -> Tensor:
    """Return (N, width) booleans, true on the first ``lengths`` (N,) frames of each row."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]
