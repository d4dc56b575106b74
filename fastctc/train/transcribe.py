"""``fastctc transcribe``: audio files to texts with a trained checkpoint, file by file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from fastctc.decoder import CTCDecoder, Hypothesis
from fastctc.train import text as alphabet
from fastctc.train.arguments import checkpoint_path, checkpoint_settings, read_checkpoint
from fastctc.train.data import SpeechDataModule, collate
from fastctc.train.decoding import make_decoder, timed_words
from fastctc.train.errors import ConfigError, DataError
from fastctc.train.module import SpeechModule
from fastctc.train.sources import Entry, FileSource, open_one_by_one


class Transcriber:
    """A trained model with a decoder.

    Args:
        checkpoint: What ``fastctc fit`` has written.
        device: Where the network runs.
        decoder: Of the trainer's alphabet, see `make_decoder`.
        greedy: Take each frame's best class instead of a search.

    Raises:
        ConfigError: The file is no checkpoint, or carries no settings.
    """

    def __init__(
        self, checkpoint: Path, device: torch.device, decoder: CTCDecoder, greedy: bool
    ) -> None:
        self.model, self.data = load_model(checkpoint)
        self.model.to(device).eval()
        self.decoder = decoder
        self.greedy = greedy

    @torch.inference_mode()
    def __call__(self, entry: Entry) -> list[Hypothesis]:
        """Return the hypotheses of an utterance, best first; DataError: it cannot be read."""
        source = FileSource(entry.uid, [entry], self.data.resample)
        batch = collate([self.data.dataset(source)[0]]).to(self.model.device)
        scores, lengths = self.model(batch)
        scores = scores.transpose(0, 1)
        if self.greedy:
            return self.decoder.greedy(scores, lengths, from_logits=True)
        return self.decoder(scores, lengths, from_logits=True)[0]

    def describe(self, found: Hypothesis) -> dict[str, Any]:
        """Return what is known of a hypothesis, for JSON."""
        row: dict[str, Any] = {"text": found.text, "score": found.score}
        if self.decoder.timesteps:
            words = timed_words(found, self.model.network.config, self.data.features)
            row["words"] = [word._asdict() for word in words]
        return row


def load_model(checkpoint: Path) -> tuple[SpeechModule, SpeechDataModule]:
    """Return the model of a checkpoint, and the data module that reads audio for it.

    Raises:
        ConfigError: The file is no checkpoint, or carries no settings.
    """
    settings = json.loads(checkpoint_settings(checkpoint, "transcribe"))
    settings.pop("seed_everything", None)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SpeechModule, "model")
    parser.add_class_arguments(SpeechDataModule, "data")
    parser.link_arguments("data", "model.features", lambda data: data.features, "instantiate")
    made = parser.instantiate_classes(parser.parse_object(settings))
    made.model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    return made.model, made.data


def transcribe(args: Sequence[str]) -> int:
    """Run the command; return 1 where something could not be transcribed, else 0.

    Raises:
        ConfigError: An option is wrong, or the checkpoint cannot be used.
    """
    options = _parser().parse_args(args)
    decoder = _decoder(options)
    checkpoint = checkpoint_path(options.checkpoint, Path(options.runs), option="--checkpoint")
    transcriber = Transcriber(
        checkpoint, _device(options.device), decoder, greedy=options.beam_size == 0
    )
    show = _show_json if options.json else _show
    status = 0
    for entry in (entry for location in options.files for entry in open_one_by_one(location)):
        try:
            if isinstance(entry, DataError):
                raise entry
            found = transcriber(entry)
        except DataError as error:
            print(f"fastctc: {error}", file=sys.stderr)
            status = 1
        else:
            show(entry.uid, [transcriber.describe(hypothesis) for hypothesis in found])
    return status


def _show(uid: str, rows: list[dict[str, Any]]) -> None:
    """Print an utterance's texts, best first, and below each its words where they have times."""
    for row in rows or [{"text": ""}]:
        print(f"{uid}\t{row['text']}")
        for word in row.get("words", []):
            print(f"  {word['start']:8.2f} {word['end']:8.2f}  {word['word']}")
    sys.stdout.flush()


def _show_json(uid: str, rows: list[dict[str, Any]]) -> None:
    best = rows[0] if rows else {"text": "", "score": None, "words": []}
    others = {"others": rows[1:]} if len(rows) > 1 else {}
    print(json.dumps({"audio": uid, **best, **others}, ensure_ascii=False), flush=True)


def _decoder(options: argparse.Namespace) -> CTCDecoder:
    phrases = [alphabet.normalise(p) for value in options.hotwords for p in value.split(",")]
    needs_beam = {
        "--lm": options.lm,
        "--lexicon": options.lexicon,
        "--hotwords": phrases,
        "--nbest": options.nbest > 1,
    }
    if options.beam_size == 0 and (given := [name for name, asked in needs_beam.items() if asked]):
        raise ConfigError(f"{given[0]} needs a beam: --beam-size is 0")
    timed = options.timestamps or options.json
    return make_decoder(
        options.beam_size or 1,
        options.lm,
        lm_weight=options.lm_weight,
        lexicon=options.lexicon,
        hotwords=[phrase for phrase in phrases if phrase] or None,
        hotword_weight=options.hotword_weight,
        nbest=options.nbest,
        timesteps=timed,
        confidence=timed,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        served = device.type in ("cpu", "cuda")
        if served:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: cannot be used ({reason})") from error
    if not served:
        raise ConfigError(f"--device {name}: cannot be used (it must be cpu, cuda or cuda:N)")
    return device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastctc transcribe",
        description="Write down what audio files say. What cannot be read is named, the rest is "
        "transcribed all the same, and the exit status is 1.",
    )
    option = parser.add_argument
    # fmt: off
    option("files", nargs="+", metavar="FILE", help="audio, a folder of it, or a JSONL manifest")
    option("--checkpoint", "--ckpt_path", default="best", metavar="PATH",
           help="checkpoint or run folder; best, last: of the newest run (default: best)")
    option("--runs", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    option("--beam-size", type=int, default=50, metavar="N",
           help="labellings kept by the search; 0: each frame's best class (default: 50)")
    option("--lm", metavar="ARPA", help="n-gram model of words or characters, plain or .gz")
    option("--lm-weight", type=float, default=0.5, metavar="W", help="its weight (default: 0.5)")
    option("--lexicon", metavar="FILE", help="the words that may be written, one on each line")
    option("--hotwords", action="append", default=[], metavar="PHRASE,...",
           help="phrases to prefer; may be given several times")
    option("--hotword-weight", type=float, default=5.0, metavar="W",
           help="natural-log bonus of each occurrence (default: 5)")
    option("--nbest", type=int, default=1, metavar="N", help="texts per utterance (default: 1)")
    option("--timestamps", action="store_true", help="where each word is said, in seconds")
    option("--json", action="store_true",
           help="a JSON object per line: text, score, words with times and confidences")
    option("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU if any (default)")
    # fmt: on
    return parser
