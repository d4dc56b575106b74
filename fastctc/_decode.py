"""Emissions to a decoder's tensors: check, allocate, call the compiled search."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastctc._checks import DTYPE_CODES, INTEGRAL, raise_without_memory
from fastctc._dispatch import is_transformed
from fastctc._native import _C


class DecodedBatch(NamedTuple):
    """The best labellings of N utterances as tensors, best first, on the device of the emissions.

    Attributes:
        tokens: (N, nbest, L) int64 labels, L the longest's, or T on CUDA; blank past each length.
        lengths: (N, nbest) int64; 0 where an utterance has fewer labellings.
        scores: (N, nbest) float64 natural logs; -inf where an utterance has fewer labellings.
        lm_scores: (N, nbest) float64: the part of the score that does not come from the emissions.
        starts: (N, nbest, L) int64: first frame of each label on the best path; 0 past each length.
        ends: (N, nbest, L) int64: the frame after its last one; 0 past each length.
        confidence: (N, nbest, L) float32, in [0, 1] for normalised scores; 0 past each length.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    lm_scores: Tensor
    starts: Tensor
    ends: Tensor
    confidence: Tensor


def native() -> Any:
    """The compiled module.

    Raises:
        RuntimeError: the package was installed without it.
    """
    if _C is None:
        raise RuntimeError(
            "beam search needs fastctc's compiled library, which was left out of this installation "
            "for want of a C++ compiler; greedy_decode and fastctc.reference do without"
        )
    return _C


def check_emissions(emissions: Any, dims: tuple[int, ...], classes: int | None = None) -> Tensor:
    """Emissions as a detached tensor of so many dimensions; the last counts classes.

    Raises:
        TypeError: they are no tensor, or of a dtype or layout that is not served.
        ValueError: they have another shape, or no values (the meta device).
        NotImplementedError: torch.func transforms the call.
        RuntimeError: they have no memory.
    """
    if not isinstance(emissions, Tensor):
        raise TypeError(f"emissions must be a Tensor, got {type(emissions).__name__}")
    if emissions.layout is not torch.strided or emissions.is_nested:
        raise TypeError("emissions must be a dense tensor, got a sparse or nested one")
    if emissions.is_meta:
        raise ValueError("emissions are on the meta device, where there are no values to decode")
    if emissions.dtype not in DTYPE_CODES:
        raise TypeError(
            "emissions must be float16, bfloat16, float32 or float64, got "
            f"{str(emissions.dtype).removeprefix('torch.')}"
        )
    if emissions.dim() not in dims:
        wanted = " or ".join({2: "(T, C)", 3: "(N, T, C)"}[d] for d in dims)
        raise ValueError(f"emissions must be {wanted}, got a shape of {tuple(emissions.shape)}")
    if classes is not None and emissions.size(-1) != classes:
        raise ValueError(
            f"emissions have {emissions.size(-1)} classes, and the decoder {classes} tokens"
        )
    if emissions.size(-1) == 0:
        raise ValueError(f"emissions have no classes: a shape of {tuple(emissions.shape)}")
    if not torch.compiler.is_compiling():  # whose tracer follows none of this
        if is_transformed(emissions):
            raise NotImplementedError("decoding does not run under torch.func transforms (vmap)")
        if emissions.numel() and emissions.data_ptr() == 0:
            raise_without_memory("emissions", emissions)
    return emissions.detach().resolve_neg()


def check_lengths(lengths: Any, batch: int, frames: int) -> Tensor:
    """Lengths as contiguous int64 on the host; None stands for whole utterances.

    Raises:
        TypeError: they are no integers.
        ValueError: they are too many, too few, or out of range.
    """
    if lengths is None:
        return torch.full((batch,), frames, dtype=torch.int64, device="cpu")
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"lengths must be integers of 64 bits, got {lengths!r:.60}") from None
    check_lengths_shape(lengths, batch)
    lengths = lengths.detach().to(device="cpu", dtype=torch.int64).reshape(batch).contiguous()
    wrong = (lengths < 0) | (lengths > frames)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"lengths[{row}] is {int(lengths[row])}: it must be from 0 to {frames}")
    return lengths


def check_lengths_shape(lengths: Tensor, batch: int) -> None:
    """Check what is known of lengths without reading them.

    Raises:
        TypeError: they are no integers.
        ValueError: they are too many or too few, or have no values.
    """
    if lengths.is_meta:
        raise ValueError("lengths are on the meta device, where there are no values")
    if lengths.dtype not in INTEGRAL and lengths.numel():
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.dim() > 1 or lengths.numel() != batch:
        raise ValueError(
            f"lengths must be one for each of the {batch} utterances, got a shape of "
            f"{tuple(lengths.shape)}"
        )


def with_adjacent_classes(emissions: Tensor) -> Tensor:
    """The emissions on the host, the classes of a frame side by side in memory."""
    emissions = emissions.cpu()
    return emissions if emissions.stride(-1) == 1 else emissions.contiguous()


def empty_batch(batch: int, nbest: int, width: int, blank: int) -> DecodedBatch:
    """A batch without labellings, on the host."""

    def full(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device="cpu")

    labellings, labels = (batch, nbest), (batch, nbest, width)
    return DecodedBatch(
        tokens=full(labels, blank, torch.int64),
        lengths=full(labellings, 0, torch.int64),
        scores=full(labellings, -torch.inf, torch.float64),
        lm_scores=full(labellings, 0, torch.float64),
        starts=full(labels, 0, torch.int64),
        ends=full(labels, 0, torch.int64),
        confidence=full(labels, 0, torch.float32),
    )


def to_tensors(results: Any, batch: int, nbest: int, blank: int) -> DecodedBatch:
    """What the compiled search found as tensors on the host."""
    width = results.longest()
    out = empty_batch(batch, nbest, width, blank)
    results.write(
        nbest,
        width,
        out.lengths.data_ptr(),
        out.scores.data_ptr(),
        out.lm_scores.data_ptr(),
        out.tokens.data_ptr(),
        out.starts.data_ptr(),
        out.ends.data_ptr(),
        out.confidence.data_ptr(),
    )
    return out


def beam_search(
    options: Any, emissions: Tensor, lengths: Tensor, nbest: int, blank: int
) -> DecodedBatch:
    """Search (N, T, C) emissions on the host, over as many threads as torch may use."""
    batch, frames, _ = emissions.shape
    stride_n, stride_t, _ = emissions.stride()
    results = native().beam_search_cpu(
        options,
        emissions.data_ptr(),
        DTYPE_CODES[emissions.dtype],
        batch,
        frames,
        stride_n,
        stride_t,
        lengths.data_ptr(),
        nbest,
        torch.get_num_threads(),
    )
    return to_tensors(results, batch, nbest, blank)


def greedy(emissions: Tensor, lengths: Tensor, blank: int, from_logits: bool) -> DecodedBatch:
    """The labels that the best class of each frame spells, for (N, T, C) emissions; T wide.

    Nothing waits for a device. Lengths out of range leave their rows without a labelling.
    """
    batch, frames, _ = emissions.shape
    device = emissions.device
    values = emissions if emissions.dtype is torch.float64 else emissions.float()
    best, path = values.max(-1)
    if from_logits:
        best = best - values.logsumexp(-1)
    time = torch.arange(frames, device=device)
    good = (lengths >= 0) & (lengths <= frames)
    valid = (time < lengths[:, None]) & good[:, None]
    path = torch.where(valid, path, blank)
    inside = path != blank
    # the blank before the first frame and after the last one
    differs = path.diff(dim=1, prepend=path.new_full((batch, 1), blank)) != 0
    ends_here = path.diff(dim=1, append=path.new_full((batch, 1), blank)) != 0
    begins, ends_here = differs & inside, ends_here & inside
    label = begins.cumsum(1) - 1
    rows = torch.arange(batch, device=device)[:, None]

    def put(values: Tensor, where: Tensor, empty: float, accumulate: bool = False) -> Tensor:
        """(N, 1, T): each value at its label; what is nowhere goes behind the last place."""
        out = values.new_full((batch, frames + 1), empty)
        at = torch.where(where, label, frames)
        out.index_put_((rows, at), torch.where(where, values, empty), accumulate=accumulate)
        return out[:, None, :frames]

    starts = put(time.expand(batch, -1), begins, 0)
    ends = put(time.expand(batch, -1) + 1, ends_here, 0)
    sums = put(best.float().exp(), inside, 0, accumulate=True)
    scores = torch.where(valid, best, 0).double().sum(1).masked_fill(~good, -torch.inf)
    return DecodedBatch(
        tokens=put(path, begins, blank),
        lengths=begins.sum(1)[:, None],
        scores=scores[:, None],
        lm_scores=torch.zeros_like(scores)[:, None],
        starts=starts,
        ends=ends,
        confidence=sums / (ends - starts).clamp(min=1),
    )


def as_wide_as_the_longest(decoded: DecodedBatch) -> DecodedBatch:
    """The same without the places that no labelling uses; waits for its device."""
    longest = int(decoded.lengths.max()) if decoded.lengths.numel() else 0
    return DecodedBatch(*(each[..., :longest] if each.dim() == 3 else each for each in decoded))
