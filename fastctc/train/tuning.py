"""A letter n-gram model from a corpus's training texts, and its weight from the validation set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastctc.decoder import CTCDecoder
from fastctc.estimate import arpa_lines, characters, save
from fastctc.lm import NGramModel
from fastctc.train.data import Batch
from fastctc.train.decoding import make_decoder
from fastctc.train.metrics import ErrorRates, beam_decode
from fastctc.train.module import SpeechModule

ORDER = 5
BEAM = 50
WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


class Tuned(NamedTuple):
    """The decoder that came out best, the weight of its model, and its error rate where chosen."""

    decoder: CTCDecoder
    weight: float
    cer: float


def beam(model: NGramModel | None = None, weight: float = 0.0) -> CTCDecoder:
    """Return a decoder for texts alone."""
    return make_decoder(BEAM, model, lm_weight=weight, timesteps=False, confidence=False)


def letter_model(texts: Iterable[str], path: Path) -> NGramModel:
    """Estimate a model of letters, write it to an ARPA file, and return it."""
    save(arpa_lines([characters(text) for text in texts], ORDER), path)
    return NGramModel.from_arpa(path)


def tune(model: SpeechModule, ngrams: NGramModel, batches: Iterable[Batch]) -> Tuned:
    """Return the decoder with the weight that leaves the fewest character errors in `batches`.

    Of equal ones the smallest weight is taken.
    """
    was_training = model.training
    model.eval()
    scored: list[tuple[Tensor, Tensor, list[str]]] = []
    with torch.inference_mode():
        for batch in batches:
            scores, lengths = model(batch.to(model.device))
            scored.append((scores, lengths, batch.texts))
    model.train(was_training)
    tried = []
    for weight in WEIGHTS:
        decoder = beam(ngrams, weight)
        rates = ErrorRates()
        for scores, lengths, texts in scored:
            rates.add(texts, beam_decode(decoder, scores, lengths))
        tried.append(Tuned(decoder, weight, rates.cer))
    return min(tried, key=lambda tuned: tuned.cer)
