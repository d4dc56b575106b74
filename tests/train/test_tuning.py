"""The n-gram model of the demo: estimated from training texts, weighted on the validation set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning", reason="lightning, of the train extra, is missing")
for _name in ("jsonargparse", "jiwer", "soundfile", "matplotlib", "rich", "tensorboard"):
    pytest.importorskip(_name, reason=f"{_name}, of the train extra, is missing")

from fastctc import NGramModel  # noqa: E402
from fastctc.train import text as alphabet  # noqa: E402
from fastctc.train.data import Batch  # noqa: E402
from fastctc.train.demo import ngram_verdict  # noqa: E402
from fastctc.train.metrics import beam_decode, greedy_decode  # noqa: E402
from fastctc.train.tuning import letter_model, tune  # noqa: E402

pytestmark = pytest.mark.usefixtures("needs_library")


class Answers(nn.Module):
    """A network that hears "ab" as "ac", by so many nats."""

    device = torch.device("cpu")

    def __init__(self, nats: float) -> None:
        super().__init__()
        self.nats = nats

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = torch.full((2, len(batch.texts), alphabet.CLASSES), -40.0)
        a, b, c = alphabet.encode("abc")
        scores[0, :, a] = scores[1, :, b] = 0
        scores[1, :, c] = self.nats
        return scores, torch.full((len(batch.texts),), 2)


def batch_of(texts: list[str]) -> Batch:
    nothing = torch.zeros(len(texts), dtype=torch.int64)
    return Batch(torch.zeros(len(texts), 1, 1), nothing, nothing[:, None], nothing, texts, texts)


@pytest.fixture
def letters(tmp_path: Path) -> NGramModel:
    return letter_model(["ab", "ab c", "ab", "ca b"], tmp_path / "letters.arpa.gz")


def test_the_model_is_written_and_counts_letters(letters: NGramModel, tmp_path: Path) -> None:
    assert NGramModel.from_arpa(tmp_path / "letters.arpa.gz").words == letters.words
    assert {"a", "b", "c", "<space>"} < set(letters.words)
    assert letters.score("a b") > letters.score("b a")


@pytest.mark.parametrize(
    ("share", "texts", "weight", "cer"),
    [
        (0.25, ["ab", "ab"], 0.3, 0.0),  # 0.3 is the first weight to turn the scale
        (0.05, ["ab"], 0.1, 0.0),
        (0.85, ["ab"], 1.0, 0.0),
        (0.25, ["ac", "ac", "ab"], 0.1, 1 / 6),  # the network is right more often than the model
        (3.0, ["ab"], 0.1, 0.5),  # no weight helps
    ],
)
def test_the_smallest_weight_with_the_fewest_errors_is_taken(
    letters: NGramModel, share: float, texts: list[str], weight: float, cer: float
) -> None:
    network = Answers(share * (letters.score("a b") - letters.score("a c")))
    network.train()
    tuned = tune(network, letters, [batch_of(texts)])  # type: ignore[arg-type]
    assert (tuned.weight, tuned.cer) == (weight, pytest.approx(cer))
    scores, lengths = network(batch_of(["ab"]))
    assert greedy_decode(scores, lengths) == ["ac"]
    assert beam_decode(tuned.decoder, scores, lengths) == ["ab" if cer == 0 else "ac"]
    assert network.training


@pytest.mark.parametrize(
    ("greedy", "fused", "words"),
    [
        (0.2, 0.1, "the WER on new words falls from 20.00% to 10.00%."),
        (0.1, 0.2, "rises from 10.00% to 20.00%"),
        (0.1, 0.1, "stays the same"),
        (float("nan"), float("nan"), "stays the same"),
    ],
)
def test_the_demo_says_whether_the_model_helps(greedy: float, fused: float, words: str) -> None:
    assert words in ngram_verdict("new words", greedy, fused)
