"""The LightningModule: the loss it optimises, values that are not finite, schedules, presets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pl = pytest.importorskip("lightning.pytorch", reason="lightning, of the train extra, is missing")
pytest.importorskip("jiwer", reason="jiwer, of the train extra, is missing")

from fastctc.train.data import Batch, Sample, collate  # noqa: E402
from fastctc.train.errors import ConfigError, NonFiniteError  # noqa: E402
from fastctc.train.features import FeatureConfig  # noqa: E402
from fastctc.train.model import ConvConfig, NetworkConfig  # noqa: E402
from fastctc.train.module import SpeechModule, alignable  # noqa: E402
from fastctc.train.optim import OptimConfig, build_optimizer  # noqa: E402

CONVS = [ConvConfig(2, (3, 5), (2, 2), (1, 2))]
FEATURES = FeatureConfig("mel", mels=10)


def _module(**changes: Any) -> SpeechModule:
    torch.manual_seed(0)
    optim = OptimConfig("adam", lr=0.01, schedule="constant")
    network = NetworkConfig(convs=CONVS, hidden=6, layers=1)
    return SpeechModule(**{"network": network, "optim": optim, "features": FEATURES, **changes})


def _batch(*texts: str, frames: int = 40) -> Batch:
    torch.manual_seed(2)
    audio = torch.randn(len(texts), FEATURES.window + (frames - 1) * FEATURES.hop).numpy()
    samples = [
        Sample(row, t, f"utt-{k}") for k, (row, t) in enumerate(zip(audio, texts, strict=True))
    ]
    return collate(samples)


def _fit(module: SpeechModule, batches: list[Batch], **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False)
    trainer.fit(module, loader)
    return trainer


def test_collate_pads_and_keeps_names() -> None:
    samples = [
        Sample(torch.ones(4).numpy(), "ab", "x"),
        Sample(torch.ones(7).numpy(), "", "y"),
    ]
    batch = collate(samples)
    assert batch.audio.tolist() == [[1.0] * 4 + [0.0] * 3, [1.0] * 7]
    assert batch.lengths.tolist() == [4, 7]
    assert batch.targets.tolist() == [[2, 3], [0, 0]]
    assert batch.target_lengths.tolist() == [2, 0]
    assert batch.uids == ["x", "y"]


def test_losses_are_torchs_per_label() -> None:
    module, batch = _module(), _batch("hello", "a", "it's on")
    scores, lengths = module(batch)
    expected = F.ctc_loss(
        scores.log_softmax(-1), batch.targets, lengths, batch.target_lengths, reduction="none"
    ) / batch.target_lengths  # fmt: skip
    got = module.losses(scores, lengths, batch)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_few_steps_lower_the_loss() -> None:
    module, batch = _module(), _batch("go", "no")
    before = float(module.losses(*module(batch), batch).mean().detach())
    _fit(module, [batch] * 60)
    assert float(module.losses(*module(batch), batch).mean().detach()) < 0.5 * before


class _Poisoned(SpeechModule):
    """Gives NaN scores for the utterances named ``bad``."""

    def forward(self, batch: Batch) -> Any:
        scores, lengths = super().forward(batch)
        bad = torch.tensor([u == "bad" for u in batch.uids])
        return scores.masked_fill(bad[None, :, None], float("nan")), lengths


def _poisoned(**changes: Any) -> SpeechModule:
    torch.manual_seed(0)
    network = NetworkConfig(convs=CONVS, hidden=6, layers=1)
    optim = OptimConfig(schedule="constant")
    return _Poisoned(network, optim, FEATURES, **changes)


def test_nan_policy_skip_leaves_the_weights_alone_and_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, batch = _poisoned(), _batch("one", "two")
    batch.uids[1] = "bad"
    before = [p.clone() for p in module.parameters()]
    _fit(module, [batch])
    for old, new in zip(before, module.parameters(), strict=True):
        assert torch.equal(old, new)
    assert "not finite for bad (step 0); the batch is skipped" in capsys.readouterr().out


def test_nan_policy_raise_names() -> None:
    module, batch = _poisoned(nan_policy="raise"), _batch("one", "two")
    batch.uids[0] = "bad"
    with pytest.raises(NonFiniteError, match=r"the loss is not finite for bad \(step 0\)"):
        _fit(module, [batch])


def test_skipping_gives_up_when_the_weights_are_lost() -> None:
    module, batch = _module(), _batch("one")
    with torch.no_grad():
        module.network.output.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="20 batches in a row: the weights are lost"):
        _fit(module, [batch] * 30)


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_gradient_that_is_not_finite(policy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module, batch = _module(nan_policy=policy), _batch("one", "two")
    module.network.output.bias.register_hook(lambda g: g * float("inf"))
    before = [p.clone() for p in module.parameters()]
    if policy == "raise":
        with pytest.raises(NonFiniteError, match="the gradient is not finite for utt-0, utt-1"):
            _fit(module, [batch])
        return
    _fit(module, [batch])
    assert "the gradient is not finite for utt-0, utt-1" in capsys.readouterr().out
    for old, new in zip(before, module.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_text_too_long_for_its_audio_is_left_out_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 20 output frames: 11 labels fit, but ten repeats need a blank each.
    module, batch = _module(), _batch("fine", "aaaaaaaaaaa")
    losses = module.losses(*module(batch), batch)
    assert losses[1] == 0
    _fit(module, [batch, batch])
    out = capsys.readouterr().out
    assert out.count("utt-1 (11 labels, 20 frames)") == 1
    assert "utt-0" not in out
    with pytest.raises(NonFiniteError, match=r"no alignment exists for utt-1 \(11 labels"):
        _fit(_module(nan_policy="raise"), [batch])


def test_batches_of_empty_texts_are_trained_on_and_evaluated() -> None:
    batch = _batch("", "")
    assert batch.targets.shape == (2, 0)
    module = _module()
    before = float(module.losses(*module(batch), batch).mean().detach())
    _fit(module, [batch] * 5)
    assert 0 < module.newest["train/loss"] < before
    with torch.no_grad():
        module._evaluate(batch, "val")
    figures = module.evaluations["val"].metrics()
    assert figures["loss"] > 0
    assert math.isnan(figures["cer"])


def test_the_loss_shown_is_over_what_has_an_alignment() -> None:
    batch = _batch("fine", "aaaaaaaaaaa")
    module = _module()
    expected = float(module.losses(*module(batch), batch)[0].detach())
    _fit(module, [batch])
    assert float(module.newest["train/loss"]) == pytest.approx(expected, rel=1e-4)
    module = _module()
    with torch.no_grad():
        module._evaluate(batch, "val")
    sums = module.evaluations["val"]
    assert sums.metrics()["loss"] == sums.loss
    hopeless = _batch("aaaaaaaaaaa")
    module = _module()
    _fit(module, [hopeless])
    assert math.isnan(module.newest["train/loss"])
    with torch.no_grad():
        module._evaluate(hopeless, "val")
    assert math.isnan(module.evaluations["val"].metrics()["loss"])


@pytest.mark.parametrize(
    ("text", "frames", "fits"),
    [("", 0, True), ("ab", 2, True), ("ab", 1, False), ("aa", 2, False), ("aa", 3, True)],
)
def test_which_texts_fit(text: str, frames: int, fits: bool) -> None:
    for texts in ((text,), (text, "a longer one")):
        batch = _batch(*texts)
        assert bool(alignable(torch.full((len(texts),), frames), batch)[0]) is fits


def test_the_logged_norm_is_before_clipping_and_the_gradient_after() -> None:
    module, batch = _module(), _batch("hello")
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore
    module.losses(*module(batch), batch).mean().backward()
    free = float(torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]))
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), 0.01, "norm")
    after = float(torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]))
    assert logged["train/grad_norm"] == pytest.approx(free)
    assert after == pytest.approx(0.01, rel=1e-3)
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), 1e-4, "value")
    assert max(float(p.grad.abs().max()) for p in module.parameters()) <= 1e-4  # type: ignore


def _rates(steps: int, **settings: Any) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    built = build_optimizer(OptimConfig(lr=1.0, **settings), [parameter], steps)
    optimizer, rates = built["optimizer"], []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if "lr_scheduler" in built and settings["schedule"] != "plateau":
            built["lr_scheduler"]["scheduler"].step()
    return rates


def test_schedules() -> None:
    assert set(_rates(5, schedule="constant")) == {1.0}
    assert _rates(2, schedule="exponential", factor=0.5) == pytest.approx([1, 0.5, 0.25])
    cycle = _rates(100, schedule="onecycle", warmup=0.2)
    assert cycle[0] == pytest.approx(0.1)
    assert max(cycle) == cycle[20] == pytest.approx(1)
    assert cycle[-1] == pytest.approx(1e-3)
    cosine = _rates(100, schedule="cosine", warmup=0.1)
    assert cosine[:2] == pytest.approx([0.01, 0.109])
    assert max(cosine) == cosine[10]
    assert cosine[-1] == pytest.approx(0.01)
    assert cosine[55] == pytest.approx(0.505)


def test_plateau_halves_when_the_cer_stands_still() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    built = build_optimizer(OptimConfig(lr=1.0, schedule="plateau", patience=1), [parameter], 10)
    assert built["lr_scheduler"]["monitor"] == "val/cer"
    for cer in (0.5, 0.5, 0.5):
        built["lr_scheduler"]["scheduler"].step(cer)
    assert built["optimizer"].param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "sgd"}, "optim.algorithm is 'sgd'; there are adamw, adam"),
        ({"schedule": "step"}, "optim.schedule is 'step'"),
        ({"lr": 0.0}, "optim.lr is 0.0"),
        ({"warmup": 1.0}, "optim.warmup is 1.0"),
        ({"factor": 1.5}, "optim.factor is 1.5"),
    ],
)
def test_bad_optimiser_settings_are_named(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**settings)


def test_a_schedule_that_needs_an_end_says_so() -> None:
    with pytest.raises(ConfigError, match=r"set trainer\.max_epochs"):
        build_optimizer(OptimConfig(schedule="cosine"), [torch.nn.Parameter(torch.zeros(1))], 0)
    assert math.isfinite(_rates(3, schedule="cosine")[-1])
