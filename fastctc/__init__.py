"""fastctc: the CTC loss as a drop-in for torch's, many times faster.

Where a program has ``F.ctc_loss(logits.log_softmax(-1), ...)``, it can have
``fastctc.ctc_loss(logits, ..., from_logits=True)``; ``CTCLoss`` is the module, and ``patch_torch``
serves programs that cannot be edited.
"""

from fastctc import config
from fastctc._build import build_info
from fastctc._patch import patch_torch
from fastctc._version import __version__
from fastctc.align import TokenSpan, forced_align, merge_tokens
from fastctc.decoder import CTCDecoder, CTCStream, DecodedBatch, Hypothesis, greedy_decode
from fastctc.lexicon import Lexicon
from fastctc.lm import NGramModel
from fastctc.loss import CTCLoss, ctc_loss
from fastctc.norm import CepstralNorm, SequenceBatchNorm, SpectrogramNorm, spectrogram_norm

__all__ = [
    "CTCDecoder",
    "CTCLoss",
    "CTCStream",
    "CepstralNorm",
    "DecodedBatch",
    "Hypothesis",
    "Lexicon",
    "NGramModel",
    "SequenceBatchNorm",
    "SpectrogramNorm",
    "TokenSpan",
    "__version__",
    "build_info",
    "config",
    "ctc_loss",
    "forced_align",
    "greedy_decode",
    "merge_tokens",
    "patch_torch",
    "spectrogram_norm",
]
