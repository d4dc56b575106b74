"""What torchaudio offers for CTC, served by fastctc.

A program that has ``from torchaudio.functional import forced_align, merge_tokens`` or
``from torchaudio.models.decoder import ctc_decoder, cuda_ctc_decoder`` can import all of these from
``fastctc.compat.torchaudio``. docs/migration.md says what differs.
"""

from __future__ import annotations

from torch import Tensor

from fastctc import align
from fastctc.align import TokenSpan, merge_tokens
from fastctc.compat._ctc_decoder import (
    CTCDecoder,
    CTCHypothesis,
    ctc_decoder,
    download_pretrained_files,
)
from fastctc.compat._cuda_ctc_decoder import CUCTCDecoder, CUCTCHypothesis, cuda_ctc_decoder
from fastctc.compat._custom_lm import CTCDecoderLM, CTCDecoderLMState

__all__ = [
    "CTCDecoder",
    "CTCDecoderLM",
    "CTCDecoderLMState",
    "CTCHypothesis",
    "CUCTCDecoder",
    "CUCTCHypothesis",
    "TokenSpan",
    "ctc_decoder",
    "cuda_ctc_decoder",
    "download_pretrained_files",
    "forced_align",
    "merge_tokens",
]


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    """Align targets to emissions: the arguments and results of torchaudio's function.

    Batches of more than one row and bfloat16 are served as well. Scores are summed in float64, so
    that paths are those that torchaudio finds for ``log_probs.double()``; where the two best ways
    into a label tie, from the blank before it and past that blank, and both beat staying,
    torchaudio stays all the same, and this takes the blank.

    Args:
        log_probs: (B, T, C) log-probabilities.
        targets: (B, L) labels without blanks, int32 or int64.
        input_lengths: (B,) frames of each row. None: T.
        target_lengths: (B,) labels of each row. None: L.
        blank: index of the blank class.

    Returns:
        The class of each frame, (B, T), of the dtype of `targets`, and its log-probability, (B, T),
        of the dtype of `log_probs`. Frames past a row's length are the blank, with a score of 0.

    Raises:
        ValueError: as `fastctc.forced_align`.
    """
    paths, scores = align.forced_align(log_probs, targets, input_lengths, target_lengths, blank)
    return paths, scores.to(log_probs.dtype)
