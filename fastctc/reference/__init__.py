"""The CTC loss, forced alignment and prefix beam search in double precision, to be read.

This is what the compiled kernels are tested against, and what serves ``fastctc.ctc_loss`` where the
package was installed without its compiled library. It needs numba, which is imported at the first
call: ``pip install fastctc[reference]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from fastctc.reference._beam_search import ScoredPrefix

__all__ = [
    "ctc_loss",
    "ctc_loss_cpu",
    "forced_align",
    "forced_align_cpu",
    "prefix_beam_search",
]

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def ctc_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    reduction: str = "mean",
    from_logits: bool = False,
    zero_infinity: bool = False,
    true_grad: bool = False,
    grad_out: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss and gradient of numpy arrays, in float64 throughout.

    Args:
        scores: (T, N, C), any real dtype: natural-log probabilities, or logits with
            ``from_logits``.
        targets: (N, S) padded or (sum(target_lengths),) concatenated labels.
        input_lengths: (N,) frames of each row.
        target_lengths: (N,) labels of each row.
        blank: index of the blank class.
        reduction: "none" gives one loss per row, "mean" the batch mean of loss / max(labels, 1),
            "sum" the sum.
        from_logits: apply a log-softmax over the classes first.
        zero_infinity: rows that no path can spell count as loss 0 and gradient 0.
        true_grad: leave exp(scores) out of the gradient of log-probabilities.
        grad_out: what the gradient is multiplied by: (N,) for reduction "none", else a scalar.

    Returns:
        The loss, (N,) or 0-d, and the gradient with respect to the scores, (T, N, C).

    Raises:
        ValueError: a length or a label is out of range, or a shape does not fit.
        ImportError: numba is not installed.
    """
    from fastctc.reference import _numpy

    return _numpy.ctc_loss(
        scores,
        targets,
        input_lengths,
        target_lengths,
        blank,
        REDUCTIONS[reduction],
        from_logits,
        zero_infinity,
        true_grad,
        grad_out,
    )


def ctc_loss_cpu(*args: Any) -> tuple[int, int, int, int] | None:
    """Stand in for the compiled module's call of the same name: the same arguments and statuses."""
    from fastctc.reference import _binding

    return _binding.ctc_loss_cpu(*args)


def forced_align(
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    from_logits: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Best path of each target: see `fastctc.forced_align`, whose ties are broken the same way.

    Args:
        scores: (T, N, C), any real dtype: natural-log probabilities, or logits with
            ``from_logits``.
        targets: (N, S) padded or (sum(target_lengths),) concatenated labels.
        input_lengths: (N,) frames of each row.
        target_lengths: (N,) labels of each row.
        blank: index of the blank class.
        from_logits: return the scores of a log-softmax over the classes.

    Returns:
        The class of each frame and its score, both (N, T), and a fault for each row, (N,): 0 where
        there is none, 1 where it has no path, 2 where a path would read NaN or +inf.

    Raises:
        ValueError: a length or a label is out of range, or a label is the blank.
        ImportError: numba is not installed.
    """
    from fastctc.reference import _numpy

    return _numpy.forced_align(scores, targets, input_lengths, target_lengths, blank, from_logits)


def forced_align_cpu(*args: Any) -> tuple[int, int, int, int] | None:
    """Stand in for the compiled module's call of the same name: the same arguments and statuses."""
    from fastctc.reference import _binding

    return _binding.forced_align_cpu(*args)


def prefix_beam_search(log_probs: ArrayLike, beam_size: int, **options: Any) -> list[ScoredPrefix]:
    """The prefixes that a beam search ends with, best first; see `_beam_search` for the options.

    Args:
        log_probs: (T, C) natural-log probabilities of one utterance.
        beam_size: prefixes kept after each frame.
        options: blank, beam_threshold, top_k, top_p, blank_skip_threshold, fusion.
    """
    from fastctc.reference import _beam_search

    return _beam_search.prefix_beam_search(log_probs, beam_size, **options)
