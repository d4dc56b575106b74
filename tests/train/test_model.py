"""DeepSpeech2: lengths, and outputs that padding cannot touch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastctc.train.errors import ConfigError
from fastctc.train.model import ConvConfig, DeepSpeech2, NetworkConfig

SMALL = [ConvConfig(4, (7, 7), (2, 2), (3, 3)), ConvConfig(4, (5, 7), (2, 1), (2, 3))]


def _network(**changes: object) -> DeepSpeech2:
    torch.manual_seed(0)
    config = NetworkConfig(**{"convs": SMALL, "hidden": 12, "layers": 2, **changes})  # type: ignore[arg-type]
    network = DeepSpeech2(config, bins=20, classes=7)
    with torch.no_grad():
        # As after some training: the biases that batch norm begins with are 0 and hide mistakes.
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def _batch(lengths: list[int], width: int, padding: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    features = torch.full((len(lengths), 20, width), padding)
    for row, n in enumerate(lengths):
        features[row, :, :n] = torch.randn(20, n)
    return features, torch.tensor(lengths)


@pytest.mark.parametrize(("frames", "expected"), [(112, 51), (123, 57), (107, 49)])
def test_output_lengths_of_the_full_network(frames: int, expected: int) -> None:
    assert NetworkConfig().output_length(frames) == expected == int((frames + 9) / 2 + 1) - 10


@pytest.mark.parametrize("frames", [24, 25, 61, 112])
def test_the_network_makes_as_many_frames_as_computed(frames: int) -> None:
    config = NetworkConfig(hidden=3, layers=1)
    network = DeepSpeech2(config, bins=161, classes=4)
    scores, lengths = network(torch.randn(1, 161, frames), torch.tensor([frames]))
    assert scores.shape == (config.output_length(frames), 1, 4)
    assert lengths.tolist() == [config.output_length(frames)]


@pytest.mark.parametrize("convs", [SMALL, [ConvConfig(3, (5, 11), (2, 2), (0, 10)),
                                           ConvConfig(3, (3, 11), (2, 1), (0, 0))]])  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_padding_reaches_neither_outputs_nor_gradients(
    convs: list[ConvConfig], training: bool
) -> None:
    results = []
    for width, padding in ((60, 0.0), (60, 1e6), (83, float("nan"))):
        # In float64, where sums in another order still agree closely.
        network = _network(convs=convs).double().train(training)
        features, lengths = _batch([60, 41, 33], width, padding)
        scores, out = network(features.double(), lengths)
        valid = torch.cat([scores[:n, k] for k, n in enumerate(out.tolist())])
        valid.square().sum().backward()
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        results.append([valid, *grads, *network.buffers()])
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_an_utterance_alone_gives_what_it_gives_in_a_batch() -> None:
    network = _network().eval()
    features, lengths = _batch([60, 41, 33], 60, 0.0)
    scores, out = network(features, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, length = network(features[row : row + 1, :, :n], lengths[row : row + 1])
        assert length.tolist() == [int(out[row])]
        torch.testing.assert_close(alone[:, 0], scores[: int(out[row]), row], rtol=1e-4, atol=1e-5)


def test_the_recurrent_layers_are_torchs_bidirectional_gru_summed() -> None:
    network = _network(layers=1, batch_norm=False).eval()
    features, lengths = _batch([50, 38], 50, 0.0)
    reference = nn.GRU(4 * 5, 12, bias=False, bidirectional=True)
    ours = network.grus[0]
    reference.load_state_dict(
        dict(ours.ahead.state_dict())
        | {f"{k}_reverse": v for k, v in ours.back.state_dict().items()}
    )
    x, on_device = features[:, None], lengths
    for conv in network.convs:
        x, on_device = conv(x, on_device)
    packed = nn.utils.rnn.pack_padded_sequence(
        x.flatten(1, 2).permute(2, 0, 1), on_device, enforce_sorted=False
    )
    both = nn.utils.rnn.pad_packed_sequence(reference(packed)[0])[0]
    expected = network.output(both[..., :12] + both[..., 12:])
    scores, out = network(features, lengths)
    for row, n in enumerate(out.tolist()):
        torch.testing.assert_close(scores[:n, row], expected[:n, row], rtol=1e-4, atol=1e-5)


def test_the_full_preset_has_the_sizes_of_deepspeech2() -> None:
    network = DeepSpeech2(NetworkConfig(), bins=161, classes=29)
    assert [tuple(c.conv.weight.shape) for c in network.convs] == [
        (32, 1, 41, 11),
        (32, 32, 21, 11),
    ]
    assert network.grus[0].ahead.input_size == 32 * 21
    assert [g.ahead.hidden_size for g in network.grus] == [800] * 5
    assert network.output.weight.shape == (29, 800)


def test_too_short_utterances_and_too_few_bins_are_named() -> None:
    network = DeepSpeech2(NetworkConfig(hidden=2, layers=1), bins=161, classes=3)
    with pytest.raises(ValueError, match="utterance 1 of the batch has 5 frames"):
        network(torch.zeros(2, 161, 40), torch.tensor([40, 5]))
    with pytest.raises(ConfigError, match="40 feature bins are too few"):
        DeepSpeech2(NetworkConfig(), bins=40, classes=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convs": []}, "network.convs is empty"),
        ({"hidden": 0}, "network.hidden is 0"),
        ({"dropout": 1.0}, "network.dropout is 1.0"),
    ],
)
def test_bad_sizes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**settings)
