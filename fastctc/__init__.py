"""fastctc: the CTC loss as a drop-in for torch's, many times faster.

    import fastctc

    loss = fastctc.ctc_loss(logits, targets, input_lengths, target_lengths, from_logits=True)
"""

from fastctc import config
from fastctc._build import build_info
from fastctc._patch import patch_torch
from fastctc._version import __version__
from fastctc.loss import CTCLoss, ctc_loss

__all__ = ["CTCLoss", "__version__", "build_info", "config", "ctc_loss", "patch_torch"]
