"""Manifests, LibriSpeech folders and audio files; what is broken is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastctc.train.errors import DataError
from fastctc.train.sources import load_files, read_audio, resample

soundfile = pytest.importorskip("soundfile", reason="soundfile, of the train extra, is missing")


def _tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("f4")


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "one.wav"
    soundfile.write(path, _tone(16_000), 16_000)
    return path


def _manifest(folder: Path, *lines: object) -> str:
    path = folder / "set.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


def test_a_manifest_is_read_relative_to_its_folder(wav: Path) -> None:
    location = _manifest(
        wav.parent,
        {"audio": "one.wav", "text": "It\u2019s ONE", "duration": 0.5},
        "",
        {"audio": str(wav), "text": "two"},
    )
    source = load_files(location)
    assert source.name == "set"
    assert [(e.text, e.seconds) for e in source.entries] == [("it's one", 0.5), ("two", 0.5)]
    np.testing.assert_allclose(source.audio(1, 16_000), _tone(16_000), atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"set\.jsonl:2: not JSON"),
        ("[1]", r"set\.jsonl:2: a JSON object is needed, not list"),
        ({"text": "a"}, r'set\.jsonl:2: "audio" must be the path of a file, got None'),
        ({"audio": "one.wav"}, r'set\.jsonl:2: "text" must be a string, got None'),
        ({"audio": "no.wav", "text": "a"}, r"set\.jsonl:2: audio file .*no\.wav does not exist"),
        ({"audio": "one.wav", "text": "route 7"}, r"set\.jsonl:2: character '7'"),
        (
            {"audio": "one.wav", "text": "a", "duration": -1},
            r'set\.jsonl:2: "duration" must be seconds above 0, got -1',
        ),
        (
            {"audio": "one.wav", "text": "a", "duration": "long"},
            r"set\.jsonl:2: \"duration\" must be seconds above 0, got 'long'",
        ),
    ],
)
def test_a_broken_line_is_named(wav: Path, line: object, message: str) -> None:
    good = {"audio": "one.wav", "text": "fine", "duration": 0.5}
    with pytest.raises(DataError, match=message):
        load_files(_manifest(wav.parent, good, line))


def test_a_manifest_may_begin_with_a_byte_order_mark(wav: Path) -> None:
    path = Path(_manifest(wav.parent, {"audio": "one.wav", "text": "a"}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_files(str(path)).entries[0].text == "a"


def _librispeech(folder: Path, suffix: str) -> Path:
    chapter = folder / "84" / "121123"
    chapter.mkdir(parents=True)
    lines = []
    for k, text in enumerate(("GO ON", "DON'T STOP")):
        uid = f"84-121123-000{k}"
        soundfile.write(chapter / (uid + suffix), _tone(16_000, 0.3 + 0.1 * k), 16_000)
        lines.append(f"{uid} {text}")
    (chapter / "84-121123.trans.txt").write_text("\n".join(lines) + "\n")
    return chapter


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_a_librispeech_folder(tmp_path: Path, suffix: str) -> None:
    _librispeech(tmp_path, suffix)
    source = load_files(str(tmp_path))
    assert [e.uid for e in source.entries] == ["84-121123-0000", "84-121123-0001"]
    assert [e.text for e in source.entries] == ["go on", "don't stop"]
    assert [e.seconds for e in source.entries] == pytest.approx([0.3, 0.4])
    np.testing.assert_allclose(source.audio(1, 16_000), _tone(16_000, 0.4), atol=1e-4)


def test_broken_librispeech_lines_are_named(tmp_path: Path) -> None:
    chapter = _librispeech(tmp_path, ".flac")
    transcript = chapter / "84-121123.trans.txt"
    with transcript.open("a") as file:
        file.write("84-121123-0002\n")
    with pytest.raises(DataError, match=r"trans\.txt:3: an utterance name and its text"):
        load_files(str(tmp_path))
    transcript.write_text("84-121123-0009 HELLO\n")
    with pytest.raises(DataError, match=r"trans\.txt:1: no audio file .*0009"):
        load_files(str(tmp_path))


def test_without_transcripts_a_file_or_a_folder_will_do(wav: Path) -> None:
    assert [e.path for e in load_files(str(wav), transcripts=False).entries] == [wav]
    assert [e.path for e in load_files(str(wav.parent), transcripts=False).entries] == [wav]
    manifest = _manifest(wav.parent, {"audio": "one.wav"})
    assert load_files(manifest, transcripts=False).entries[0].text is None


def test_what_is_no_data_is_named(tmp_path: Path, wav: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file"):
        load_files(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"one\.wav: neither a \.jsonl manifest"):
        load_files(str(wav))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds no \*\.trans\.txt"):
        load_files(str(tmp_path / "empty"))
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the manifest is empty"):
        load_files(str(tmp_path / "none.jsonl"))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio at all")
    with pytest.raises(DataError, match=r"broken\.wav: cannot be read as audio"):
        read_audio(broken)
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, "f4"), 16_000)
    with pytest.raises(DataError, match=r"empty\.wav: holds no samples"):
        read_audio(empty)
    bad = tmp_path / "nan.wav"
    soundfile.write(bad, np.full(100, np.nan, "f4"), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: holds samples that are NaN"):
        read_audio(bad)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    tone = _tone(16_000)
    soundfile.write(path, np.stack([tone, -0.5 * tone], axis=1), 16_000)
    samples, rate = read_audio(path)
    assert rate == 16_000
    np.testing.assert_allclose(samples, 0.25 * tone, atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.5, 0.4321])
def test_resampling_keeps_a_tone(rate: int, seconds: float) -> None:
    audio = _tone(rate, seconds)
    out = resample(audio, rate, 16_000)
    assert out.dtype == np.float32
    assert abs(len(out) - len(audio) * 16_000 / rate) < 1
    expected = _tone(16_000, seconds + 1)[: len(out)]
    # The mirrored ends bend the tone a little; the middle is exact.
    np.testing.assert_allclose(out[800:-800], expected[800:-800], atol=2e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    out = resample(_tone(48_000, hertz=11_000.0), 48_000, 16_000)
    assert np.abs(out[400:-400]).max() < 0.01


def test_other_rates_are_resampled_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "eight.wav"
    soundfile.write(path, _tone(8_000), 8_000)
    assert len(load_files(str(path), transcripts=False).audio(0, 16_000)) == 8_000
    strict = load_files(str(path), resample=False, transcripts=False)
    with pytest.raises(DataError, match=r"eight\.wav: sampled at 8000 Hz.*16000 Hz"):
        strict.audio(0, 16_000)
