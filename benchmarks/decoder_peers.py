"""Beam-search decoders that fastctc is measured against, each set to the same beam and pruning."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Further down than any hypothesis gets: no cut.
NO_CUT = 1e6

Decode = Callable[[], list[int]]


@dataclass(frozen=True)
class Peer:
    """`prepare(log_probs, beam, tokens)` gives a call that decodes (T, C) log-probabilities.

    `tokens` classes of a frame may be looked at, None for all.
    """

    name: str
    module: str
    prepare: Callable[[torch.Tensor, int, int | None], Decode]

    def is_there(self) -> bool:
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            return False


def alphabet(classes: int) -> list[str]:
    """One character for each class but the blank, which is 0 and empty."""
    return ["", *(chr(0x4E00 + c) for c in range(1, classes))]


def prepare_flashlight(log_probs: torch.Tensor, beam: int, tokens: int | None) -> Decode:
    from flashlight.lib.text import decoder as fl

    frames, classes = log_probs.shape
    options = fl.LexiconFreeDecoderOptions(
        beam_size=beam,
        beam_size_token=tokens or classes,
        beam_threshold=NO_CUT,
        lm_weight=0.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=fl.CriterionType.CTC,
    )
    # the last class stands in for silence, which has no rule of its own at a score of 0
    search = fl.LexiconFreeDecoder(options, fl.ZeroLM(), classes - 1, 0, [])

    def decode() -> list[int]:
        path = search.decode(log_probs.data_ptr(), frames, classes)[0].tokens
        merged = [c for c, before in zip(path[1:], path[:-1], strict=True) if c != before]
        return [c for c in merged if c != 0]

    return decode


def prepare_fast_ctc_decode(cut: float) -> Callable[[torch.Tensor, int, int | None], Decode]:
    def prepare(log_probs: torch.Tensor, beam: int, tokens: int | None) -> Decode:
        del tokens
        import fast_ctc_decode

        letters = alphabet(log_probs.size(1))
        letters[0] = "-"
        classes = {letter: c for c, letter in enumerate(letters)}
        probabilities = log_probs.exp().numpy()
        text = "".join(letters)

        def decode() -> list[int]:
            found, _ = fast_ctc_decode.beam_search(
                probabilities, text, beam_size=beam, beam_cut_threshold=cut
            )
            return [classes[letter] for letter in found]

        return decode

    return prepare


def prepare_pyctcdecode(log_probs: torch.Tensor, beam: int, tokens: int | None) -> Decode:
    del tokens
    import logging

    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    import pyctcdecode

    letters = alphabet(log_probs.size(1))
    classes: dict[str, Any] = {letter: c for c, letter in enumerate(letters)}
    search = pyctcdecode.build_ctcdecoder(letters)
    logits = log_probs.numpy()

    def decode() -> list[int]:
        text = search.decode(logits, beam_width=beam)  # with the cuts it comes with
        return [classes[letter] for letter in text]

    return decode


PEERS = {
    peer.name: peer
    for peer in (
        Peer("flashlight-text, log-add", "flashlight.lib.text", prepare_flashlight),
        Peer("fast-ctc-decode, no cut", "fast_ctc_decode", prepare_fast_ctc_decode(0.0)),
        Peer("fast-ctc-decode, cut 1e-3", "fast_ctc_decode", prepare_fast_ctc_decode(1e-3)),
        Peer("pyctcdecode, its own cuts", "pyctcdecode", prepare_pyctcdecode),
    )
}
