"""Forced alignment: when a known text is said, by the best CTC path that spells it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastctc import _align_ops
from fastctc._arguments import whole_number
from fastctc.loss import Lengths

__all__ = ["TokenSpan", "forced_align", "merge_tokens"]


@dataclass
class TokenSpan:
    """A token with the frames that a path spends on it.

    Attributes:
        token: its class.
        start: its first frame.
        end: the frame after its last one.
        score: the mean score of its frames.
    """

    token: int
    start: int
    end: int
    score: float

    def __len__(self) -> int:
        """How many frames the token takes."""
        return self.end - self.start


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
    *,
    from_logits: bool = False,
    batch_first: bool = True,
    on_impossible: str = "raise",
) -> tuple[Tensor, Tensor]:
    """The most probable path of each target through its frames (Viterbi on the CTC lattice).

    Where several paths are equally probable, the one is chosen that, going back from the last
    frame, prefers a label to the blank after it at the end, then staying in a state to entering it,
    then entering a label from the blank before it to skipping that blank. Scores are summed in
    float64 whatever their dtype.

    Args:
        log_probs: (N, T, C), or (T, N, C) without ``batch_first``, or (T, C) for one utterance:
            natural-log probabilities, or logits with ``from_logits``. float64, float32, float16 or
            bfloat16, with any strides, on the CPU, or on a CUDA device where this build has the
            CUDA library.
        targets: labels, (N, S) padded, or (sum(target_lengths),) concatenated; (S,) or (1, S) for
            one utterance. Any integer dtype. What lies past a row's length is ignored.
        input_lengths: frames of each row, as for `fastctc.ctc_loss`. None: all of them.
        target_lengths: labels of each row. None: as many as `targets` is wide.
        blank: index of the blank class, which is no label.
        from_logits: the scores returned are those of a log-softmax over the classes. The path is
            the same with or without one, up to rounding.
        batch_first: `log_probs` has its batch dimension first.
        on_impossible: what happens to a row that has no path (too few frames for its labels, or no
            path with a score above -inf) or that has NaN or +inf where a path can read it. "raise":
            a ValueError names it. "mark": its path is -1, and its scores are -inf, or NaN in the
            second case, all along the row. On a CUDA device "raise" waits for the result, "mark"
            does not; lengths and labels that are there and out of range count as having no path.

    Returns:
        paths: (N, T), or (T,) for one utterance, in both layouts of `log_probs`: the class of each
            frame; the blank on frames past `input_lengths`. int32 for int32 targets, else int64.
        scores: of the same shape: the log-probability of that class at that frame; 0 on frames past
            `input_lengths`. Of the dtype of `log_probs`, but float32 for float16 and bfloat16. A
            row's sum is the log-probability of its path. Nothing is differentiable.

    Raises:
        ValueError: a length, a label or a shape does not fit, a label is the blank, a row has no
            path, or there is no such `on_impossible`.
        TypeError: an argument is of the wrong type.
        NotImplementedError: `log_probs` has a dtype, layout or device that is not served, or the
            call is made under torch.func or forward-mode differentiation.
    """
    options = _align_ops.check_options(blank, from_logits, batch_first, on_impossible)
    lengths = _align_ops.check_tensors(log_probs, targets, input_lengths, target_lengths, options)
    return _align_ops.forced_align(log_probs.detach(), targets, *lengths, options)


def merge_tokens(tokens: Tensor, scores: Tensor, blank: int = 0) -> list[TokenSpan]:
    """The tokens of one path in order: its runs of one class, without those of the blank.

    Args:
        tokens: (T,) path of one utterance, from `forced_align`.
        scores: (T,) its scores.
        blank: index of the blank class.

    Returns:
        One span for each token; none for a row that was marked as impossible.

    Raises:
        ValueError: `tokens` or `scores` is not 1-D, or they differ in length.
        TypeError: an argument is of the wrong type.
    """
    blank = whole_number("blank", blank)
    for name, values in (("tokens", tokens), ("scores", scores)):
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(values).__name__}")
        if values.dim() != 1:
            raise ValueError(f"{name} must be 1-D, got a shape of {tuple(values.shape)}")
    if len(tokens) != len(scores):
        raise ValueError(
            f"tokens and scores must be equally long, got {len(tokens)} and {len(scores)}"
        )
    classes, counts = torch.unique_consecutive(tokens, return_counts=True)
    ends = counts.cumsum(0)
    spans = []
    values = scores.detach().double().cpu()
    start = 0
    for token, end in zip(classes.tolist(), ends.tolist(), strict=True):
        if token not in (blank, -1):
            spans.append(TokenSpan(token, start, end, values[start:end].mean().item()))
        start = end
    return spans
