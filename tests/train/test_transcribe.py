"""``fastctc transcribe``: texts, times and confidences of files, and what happens to bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastctc import _decode, cli
from fastctc.estimate import arpa_lines

pytest.importorskip("lightning", reason="lightning, of the train extra, is missing")
for _name in ("jsonargparse", "jiwer", "soundfile", "matplotlib", "rich", "tensorboard"):
    pytest.importorskip(_name, reason=f"{_name}, of the train extra, is missing")

import soundfile  # noqa: E402

from fastctc.decoder import Hypothesis  # noqa: E402
from fastctc.train import text as alphabet  # noqa: E402
from fastctc.train.decoding import frame_start, make_decoder, timed_words  # noqa: E402
from fastctc.train.features import FeatureConfig  # noqa: E402
from fastctc.train.formant import FormantCorpus  # noqa: E402
from fastctc.train.model import ConvConfig, NetworkConfig  # noqa: E402
from fastctc.train.transcribe import Transcriber  # noqa: E402

pytestmark = pytest.mark.usefixtures("needs_library")

TINY = """
name: tiny
model:
  network:
    convs: [{channels: 2, kernel: [5, 5], stride: [2, 2], padding: [2, 2]}]
    hidden: 8
    layers: 1
  optim: {algorithm: adamw, lr: 0.01}
data:
  features: {kind: mel, mels: 12}
  formant: {train: 8, validation: 2, heldout: 2, new_words: 2}
trainer: {max_epochs: 1, accelerator: cpu}
"""
RATE = 16_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training run."""
    folder = tmp_path_factory.mktemp("transcribe")
    (folder / "tiny.yaml").write_text(TINY)
    config = ["--config", str(folder / "tiny.yaml"), "--runs", str(folder / "runs")]
    assert cli.main(["fit", *config]) == 0
    return next((folder / "runs" / "tiny").iterdir())


@pytest.fixture(autouse=True)
def _audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = FormantCorpus("heldout", 2)
    soundfile.write("a.wav", corpus[0].audio, RATE)
    soundfile.write("b.flac", corpus[1].audio, RATE)


def transcribed(run: Path, capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    capsys.readouterr()
    assert cli.main(["transcribe", "--checkpoint", str(run), "--device", "cpu", *args]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def test_texts_are_those_of_predict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--beam-size", "20"], ["--beam-size", "0"]):
        ours = transcribed(run, capsys, "a.wav", "b.flac", *options)
        predict = [option.replace("-size", "_size") for option in options]
        assert cli.main(["predict", "--ckpt_path", str(run), "a.wav", "b.flac", *predict]) == 0
        assert ours == capsys.readouterr().out.splitlines()
        assert [line.split("\t")[0] for line in ours] == ["a.wav", "b.flac"]


def test_json_has_scores_times_and_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = transcribed(run, capsys, "a.wav", "--json", "--nbest", "3", "--lm-weight", "1")
    (row,) = [json.loads(line) for line in lines]
    assert row["audio"] == "a.wav"
    assert list(row) == ["audio", "text", "score", "words", "others"]
    scores = [row["score"], *(other["score"] for other in row["others"])]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    seconds = soundfile.info("a.wav").duration
    for hypothesis in (row, *row["others"]):
        assert [word["word"] for word in hypothesis["words"]] == hypothesis["text"].split()
        for word in hypothesis["words"]:
            assert 0 <= word["start"] < word["end"] <= seconds + 0.1
            assert 0 <= word["confidence"] <= 1
    plain = transcribed(run, capsys, "a.wav", "--timestamps", "--nbest", "3")
    texts = [row["text"], *(other["text"] for other in row["others"])]
    assert [line for line in plain if "\t" in line] == [f"a.wav\t{text}" for text in texts]
    times = [line.split() for line in plain if "\t" not in line]
    assert [w for *_, w in times] == [w for text in texts for w in text.split()]


def test_models_lexicons_and_hotwords_take_part(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("words.txt").write_text("zebra\n")
    for line in transcribed(run, capsys, "a.wav", "b.flac", "--lexicon", "words.txt"):
        assert set(line.split("\t")[1].split()) <= {"zebra"}
    Path("capital.txt").write_text("Zebra\n")
    assert transcribed(run, capsys, "a.wav", "--lexicon", "capital.txt") == transcribed(
        run, capsys, "a.wav", "--lexicon", "words.txt"
    )
    hot = transcribed(run, capsys, "a.wav", "--hotwords", "Quilt, xylo", "--hotword-weight", "90")
    assert set(hot[0].split("\t")[1].split()) & {"quilt", "xylo"}
    Path("z.arpa").write_text("".join(arpa_lines([["z"] * 9], 2)))
    modelled = transcribed(run, capsys, "a.wav", "--lm", "z.arpa", "--lm-weight", "9")
    assert set(modelled[0].split("\t")[1]) <= {"z"}


def test_one_bad_file_leaves_the_others_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = transcribed(run, capsys, "a.wav", "b.flac")
    Path("text.wav").write_text("not audio")
    soundfile.write("empty.wav", np.zeros(0), RATE)
    Path("folder").mkdir()
    Path("folder/broken.flac").write_text("not audio")
    soundfile.write("folder/good.wav", FormantCorpus("heldout", 1)[0].audio, RATE)
    Path("bare").mkdir()
    Path("list.jsonl").write_text(
        '{"audio": "gone.wav"}\n{"audio": "b.flac"}\n{"audio": 3}\nnot json\n'
    )
    files = ["a.wav", "gone.wav", "text.wav", "empty.wav", "folder", "bare", "list.jsonl"]
    assert cli.main(["transcribe", "--checkpoint", str(run), *files, "b.flac"]) == 1
    said = capsys.readouterr()
    texts = dict(line.split("\t") for line in said.out.splitlines())
    assert texts["a.wav"] == texts["folder/good.wav"] == expected[0].split("\t")[1]
    assert texts["b.flac"] == texts["list.jsonl:2 (b.flac)"] == expected[1].split("\t")[1]
    assert len(texts) == 4
    errors = said.err.splitlines()
    for line, words in zip(
        errors,
        (
            "gone.wav: no such file or folder",
            "text.wav: cannot be read as audio",
            "empty.wav: holds no samples",
            "folder/broken.flac: cannot be read as audio",
            "bare: holds no audio files",
            "list.jsonl:1: audio file gone.wav does not exist",
            'list.jsonl:3: "audio" must be the path of a file',
            "list.jsonl:4: not JSON",
        ),
        strict=True,
    ):
        assert words in line


def test_another_sample_rate_is_resampled(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio, rate = soundfile.read("a.wav")
    soundfile.write("slow.wav", np.repeat(audio, 3), 3 * rate)
    lines = transcribed(run, capsys, "a.wav", "slow.wav")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint", "no"], "--checkpoint no: no such checkpoint (no)"),
        (["--lm", "no.arpa"], "no.arpa"),
        (["--lexicon", "no.txt"], "no.txt"),
        (["--beam-size", "0", "--hotwords", "x"], "--hotwords needs a beam: --beam-size is 0"),
        (["--beam-size", "0", "--nbest", "2"], "--nbest needs a beam: --beam-size is 0"),
        (["--beam-size", "-1"], "beam_size is -1"),
        (["--nbest", "99"], "nbest is 99: it must be from 1 to 50"),
        (["--hotwords", "caf\u00e9"], "cannot be spelled"),
        (["--device", "meta"], "--device meta: cannot be used (it must be cpu, cuda or cuda:N)"),
        (["--device", "tpu"], "--device tpu: cannot be used"),
        (["--device", "cuda:77"], "--device cuda:77: cannot be used"),
    ],
)
def test_mistakes_get_a_sentence(
    args: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", "--checkpoint", str(run), "a.wav", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_without_the_compiled_library_there_is_a_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decode, "_C", None)
    assert cli.main(["transcribe", "--checkpoint", str(run), "a.wav"]) == 2
    error = capsys.readouterr().err
    assert "decoding: beam search needs fastctc's compiled library" in error
    assert len(error.splitlines()) == 1


def test_frames_lie_round_the_middle_of_what_is_heard() -> None:
    """A click is heard by all the frames that the convolutions let it reach, and no others."""
    features = FeatureConfig(window=320, hop=160)
    convs = [ConvConfig(1, (7, 7), (2, 2), (3, 3)), ConvConfig(1, (5, 11), (2, 1), (2, 0))]
    network = NetworkConfig(convs=convs, hidden=1, layers=1)
    for click in (16_000, 23_456, 40_000):
        since = click - torch.arange(399) * features.hop
        heard = ((since >= 0) & (since < features.window)).float()[None, None]
        for conv in convs:
            kernel = torch.ones(1, 1, conv.kernel[1])
            heard = torch.conv1d(heard, kernel, stride=conv.stride[1], padding=conv.padding[1])
        frames = heard[0, 0].nonzero()[:, 0]
        middle = (int(frames[0]) + int(frames[-1]) + 1) / 2
        span = frame_start(1001, network, features) - frame_start(1000, network, features)
        assert span == pytest.approx(0.02)
        time = frame_start(0, network, features) + middle * span
        assert time == pytest.approx(click / RATE, abs=span / 2)


def test_words_have_the_times_of_their_letters() -> None:
    network = NetworkConfig(convs=[ConvConfig(1, (1, 1), (1, 1), (0, 0))])
    features = FeatureConfig(window=160, hop=160)  # 10 ms a frame, from 0
    tokens = alphabet.encode("ab  c")
    times = [(1, 2), (4, 6), (7, 8), (8, 9), (10, 13)]
    found = Hypothesis(tokens, "ab c", ["ab", "c"], 0.0, 0.0, times, [0.5, 0.7, 1.0, 1.0, 0.9])
    first, second = timed_words(found, network, features)
    assert first == ("ab", pytest.approx(0.01), pytest.approx(0.06), pytest.approx(0.6))
    assert second == ("c", pytest.approx(0.10), pytest.approx(0.13), pytest.approx(0.9))


def test_a_transcriber_leaves_gradients_and_training_off(run: Path) -> None:
    decoder = make_decoder(5)
    checkpoint = run / "checkpoints" / "best.ckpt"
    transcriber = Transcriber(checkpoint, torch.device("cpu"), decoder, greedy=False)
    assert not transcriber.model.training
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in transcriber.model.state_dict().items():
        assert torch.equal(value, state[name])
