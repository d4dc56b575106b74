"""torchaudio's CUDA decoder, on whatever device the scores are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastctc._arguments import path_of, whole_number, whole_number_in
from fastctc._spelling import check_tokens
from fastctc.compat._decoder_files import fields_of_lines
from fastctc.decoder import CTCDecoder

BLANK_SKIP_THRESHOLD = 0.95


class CUCTCHypothesis(NamedTuple):
    """One hypothesis of an utterance.

    Attributes:
        tokens: its classes.
        words: what they stand for.
        score: natural log of its probability.
    """

    tokens: list[int]
    words: list[str]
    score: float


class CUCTCDecoder:
    """Beam search without a language model.

    Args:
        vocab_list: what each class stands for.
        blank_id: index of the blank; any.
        beam_size: labellings kept after each frame, at most as many as there are classes.
        nbest: hypotheses returned, at most as many as the beam holds.
        blank_skip_threshold: a frame whose blank is more probable counts as blank.
        cuda_stream: the stream to work on. None: torch's current one.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        vocab_list: Sequence[str],
        blank_id: int = 0,
        beam_size: int = 10,
        nbest: int = 1,
        blank_skip_threshold: float = BLANK_SKIP_THRESHOLD,
        cuda_stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.vocab_list = check_tokens(vocab_list, "vocab_list")
        self.blank_id = whole_number_in("blank_id", blank_id, 0, len(self.vocab_list) - 1)
        self.beam_size = min(whole_number("beam_size", beam_size), len(self.vocab_list))
        self.nbest = nbest
        if cuda_stream is not None and not isinstance(cuda_stream, torch.cuda.Stream):
            raise TypeError(
                f"cuda_stream must be a torch.cuda.Stream or None, got {type(cuda_stream).__name__}"
            )
        self._stream = cuda_stream
        self._search = CTCDecoder(
            self.vocab_list,
            blank=self.blank_id,
            beam_size=self.beam_size,
            nbest=nbest,
            blank_skip_threshold=blank_skip_threshold,
            word_boundary="",
            timesteps=False,
            confidence=False,
        )

    def __call__(self, log_prob: Tensor, encoder_out_lens: Any) -> list[list[CUCTCHypothesis]]:
        """Decode a batch.

        Args:
            log_prob: (N, T, C) natural-log probabilities of any float type, on any device.
            encoder_out_lens: (N,) frames of each utterance.

        Returns:
            For each utterance at most `nbest` hypotheses, best first.
        """
        stream = self._stream
        if stream is not None:
            # the scores may still be on their way
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        on_stream: AbstractContextManager[Any] = (
            nullcontext() if stream is None else torch.cuda.stream(stream)
        )
        with on_stream:
            found = self._search(log_prob, encoder_out_lens)
        return [
            [
                CUCTCHypothesis(h.tokens, [self.vocab_list[c] for c in h.tokens], h.score)
                for h in hypotheses
            ]
            for hypotheses in found
        ]


def cuda_ctc_decoder(
    tokens: str | os.PathLike[str] | Sequence[str],
    nbest: int = 1,
    beam_size: int = 10,
    blank_skip_threshold: float = BLANK_SKIP_THRESHOLD,
) -> CUCTCDecoder:
    """A `CUCTCDecoder` whose tokens may be the path of a file, the first word of each line."""
    if isinstance(tokens, (str, os.PathLike)):
        tokens = [fields[0] for fields in fields_of_lines(path_of("tokens", tokens))]
    return CUCTCDecoder(
        tokens, beam_size=beam_size, nbest=nbest, blank_skip_threshold=blank_skip_threshold
    )
