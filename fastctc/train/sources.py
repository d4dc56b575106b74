"""Where utterances come from: the built-in corpus, JSONL manifests, LibriSpeech folders, files.

A source lists its utterances (name, text, duration) without reading audio, and reads the audio of
one when asked. Sources are plain objects that pickle, so DataLoader workers can hold them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastctc.train import text as alphabet
from fastctc.train.errors import DataError
from fastctc.train.formant import FormantCorpus

Floats = npt.NDArray[np.float32]

_AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")
_MANIFEST_SUFFIXES = (".jsonl", ".json")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One utterance of a source. ``text`` is None where there is no transcript."""

    uid: str
    text: str | None
    seconds: float
    path: Path | None = None


class Source(Protocol):
    """What the data module asks of a source."""

    name: str
    entries: list[Entry]

    def audio(self, index: int, sample_rate: int) -> Floats:
        """Return the samples of entry ``index``: (samples,) float32 at ``sample_rate``."""
        ...


class FormantSource:
    """The built-in corpus as a source."""

    def __init__(self, corpus: FormantCorpus) -> None:
        self.name: str = corpus.split
        self.corpus = corpus
        self.entries = [
            Entry(corpus.uid(k), text, corpus.duration(k)) for k, text in enumerate(corpus.texts)
        ]

    def audio(self, index: int, sample_rate: int) -> Floats:
        return resample(self.corpus[index].audio, 16_000, sample_rate)


class FileSource:
    """Audio files, each with its transcript or without.

    Args:
        name: What metrics call this set.
        entries: With ``path`` set.
        resample: Whether audio at another rate is resampled; else it raises DataError.
    """

    def __init__(self, name: str, entries: list[Entry], resample: bool = True) -> None:
        self.name = name
        self.entries = entries
        self.resample = resample

    def audio(self, index: int, sample_rate: int) -> Floats:
        path = self.entries[index].path
        if path is None:
            raise DataError(f"{self.entries[index].uid} has no audio file")
        samples, rate = read_audio(path)
        if rate != sample_rate and not self.resample:
            raise DataError(
                f"{path}: sampled at {rate} Hz, the features need {sample_rate} Hz; resample the "
                "file or set data.resample to true"
            )
        return resample(samples, rate, sample_rate)


def read_audio(path: Path) -> tuple[Floats, int]:
    """Return ((samples,) float32, Hz) of a file, channels averaged; DataError names the file."""
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as audio ({error})") from error
    if not len(samples):
        raise DataError(f"{path}: holds no samples")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: holds samples that are NaN or infinite")
    return mono, int(rate)


def resample(audio: Floats, rate: int, target: int) -> Floats:
    """Return ``audio`` at ``target`` Hz: its spectrum cut off or extended, in one transform.

    The ends are mirrored first, so that a recording does not wrap round into itself.
    """
    if rate == target or not len(audio):
        return audio
    # The margin is a multiple of both sampling grids, so it can be cut off again exactly.
    common = math.gcd(rate, target)
    down, up = rate // common, target // common
    blocks = -(-min(len(audio), rate // 50) // down)
    padded = np.pad(audio, (blocks * down, blocks * down + (-len(audio)) % down), mode="symmetric")
    spectrum = np.fft.rfft(padded)
    size = len(padded) // down * up
    bins = np.zeros(size // 2 + 1, spectrum.dtype)
    keep = min(len(bins), len(spectrum))
    bins[:keep] = spectrum[:keep]
    out = np.fft.irfft(bins, size) * (up / down)
    start = blocks * up
    return out[start : start + -(-len(audio) * up // down)].astype(np.float32)


def load_files(location: str, *, resample: bool = True, transcripts: bool = True) -> FileSource:
    """Return the source behind a path.

    Args:
        location: A ``.jsonl`` manifest or a folder in LibriSpeech's layout; without transcripts
            also an audio file or a folder of them.
        resample: As for FileSource.
        transcripts: Whether every utterance must have one.

    Raises:
        DataError: The path or something it names does not exist, or a line is broken.
    """
    path = Path(location).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        entries = _librispeech(path)
        if not entries and not transcripts:
            entries = [_audio_entry(p) for p in _audio_files(path)]
        wanted = "*.trans.txt files in LibriSpeech's layout" if transcripts else "audio files"
        if not entries:
            raise DataError(f"{path}: the folder holds no {wanted}")
    elif path.suffix.lower() in _MANIFEST_SUFFIXES:
        entries = _manifest(path, transcripts)
    elif transcripts:
        raise DataError(
            f"{path}: neither a .jsonl manifest nor a folder in LibriSpeech's layout, which are "
            "what transcripts come from"
        )
    else:
        entries = [_audio_entry(path)]
    return FileSource(path.stem, entries, resample)


def open_one_by_one(location: str) -> Iterator[Entry | DataError]:
    """Yield the utterances of an audio file, a folder of them or a manifest.

    Instead of one that cannot be opened, the error that says why: the others do not suffer.
    """
    path = Path(location).expanduser()
    makers: list[Callable[[], Entry]]
    try:
        if path.is_dir():
            makers = [functools.partial(_audio_entry, file) for file in _audio_files(path)]
        elif path.suffix.lower() in _MANIFEST_SUFFIXES:
            lines = list(_lines(path))
            makers = [functools.partial(_manifest_entry, path, *line, False) for line in lines]
        elif path.exists():
            makers = [functools.partial(_audio_entry, path)]
        else:
            raise DataError(f"{path}: no such file or folder")
        if not makers:
            raise DataError(f"{path}: holds no audio files")
    except DataError as error:
        yield error
        return
    for make in makers:
        try:
            entry: Entry | DataError = make()
        except DataError as error:
            entry = error
        yield entry


def _audio_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _AUDIO_SUFFIXES)


def _audio_entry(path: Path) -> Entry:
    return Entry(str(path), None, _seconds(path), path)


def _seconds(path: Path) -> float:
    import soundfile

    try:
        return float(soundfile.info(path).duration)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as audio ({error})") from error


def _lines(path: Path) -> Iterable[tuple[str, str]]:
    """Yield ("file:line", line) for the lines that are not empty."""
    try:
        content = path.read_text(encoding="utf-8-sig")  # some editors begin with a BOM
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _text(where: str, text: str) -> str:
    """Return the normalised transcript, which the alphabet must be able to write."""
    text = alphabet.normalise(text)
    try:
        alphabet.encode(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return text


def _manifest(path: Path, transcripts: bool) -> list[Entry]:
    entries = [_manifest_entry(path, w, line, transcripts) for w, line in _lines(path)]
    if not entries:
        raise DataError(f"{path}: the manifest is empty")
    return entries


def _manifest_entry(manifest: Path, where: str, line: str, transcripts: bool) -> Entry:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(row).__name__}")
    audio, text, seconds = row.get("audio"), row.get("text"), row.get("duration")
    if not isinstance(audio, str) or not audio:
        raise DataError(f'{where}: "audio" must be the path of a file, got {audio!r}')
    if not isinstance(text, str) and (transcripts or text is not None):
        raise DataError(f'{where}: "text" must be a string, got {text!r}')
    path = manifest.parent / Path(audio).expanduser()
    if not path.is_file():
        raise DataError(f"{where}: audio file {path} does not exist")
    if seconds is None:
        seconds = _seconds(path)
    elif isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise DataError(f'{where}: "duration" must be seconds above 0, got {seconds!r}')
    uid = f"{where} ({path.name})"
    return Entry(uid, None if text is None else _text(where, text), float(seconds), path)


def _librispeech(folder: Path) -> list[Entry]:
    """Return the utterances of every ``*.trans.txt`` below ``folder``, in order of their names."""
    entries = []
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for where, line in _lines(transcript):
            uid, _, text = line.strip().partition(" ")
            if not text.strip():
                raise DataError(f"{where}: an utterance name and its text are needed")
            candidates = [transcript.parent / (uid + suffix) for suffix in _AUDIO_SUFFIXES]
            path = next((p for p in candidates if p.is_file()), None)
            if path is None:
                raise DataError(f"{where}: no audio file {candidates[0]} (or .wav, .ogg ...)")
            entries.append(Entry(uid, _text(where, text), _seconds(path), path))
    return entries
