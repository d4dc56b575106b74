"""CUDA emissions to a decoder's tensors, on the device and without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastctc import _decode, config
from fastctc._backends import BACKENDS
from fastctc._checks import DTYPE_CODES
from fastctc._cuda import Cuda
from fastctc._decode import DecodedBatch
from fastctc._fusion import Fusion
from fastctc.lm import address_of

MOST_BEAMS = 256
_MOST_NODES = 2**29


def backend_for(emissions: Tensor, beam_size: int) -> Cuda | None:
    """Who searches on the emissions' device; None: they have to go to the host.

    Raises:
        ValueError: there are too many frames for a beam of that size.
    """
    backend = BACKENDS.get(emissions.device.type)
    if not isinstance(backend, Cuda) or beam_size > MOST_BEAMS:
        return None
    if emissions.size(1) * beam_size > _MOST_NODES:
        raise ValueError(
            f"emissions have {emissions.size(1)} frames: on CUDA a beam of {beam_size} is served "
            f"for at most {_MOST_NODES // beam_size}"
        )
    return backend


def check_lengths(backend: Cuda, lengths: Any, emissions: Tensor) -> Tensor:
    """Lengths as int64 on the device. Their values are checked where the host sees them.

    Raises:
        TypeError: they are no integers.
        ValueError: they are too many, too few, or out of range.
    """
    batch, frames, _ = emissions.shape
    if lengths is None:
        return emissions.new_full((batch,), frames, dtype=torch.int64)
    if not isinstance(lengths, Tensor) or backend.sees(lengths):
        return backend.upload(_decode.check_lengths(lengths, batch, frames), emissions)
    _decode.check_lengths_shape(lengths, batch)
    if config.validate_device_inputs:
        _decode.check_lengths(lengths, batch, frames)
    lengths = lengths.detach().to(emissions.device, torch.int64, non_blocking=True)
    return lengths.reshape(batch).contiguous()


def beam_search(
    backend: Cuda,
    options: Any,
    fusion: Fusion | None,
    emissions: Tensor,
    lengths: Tensor,
    *,
    nbest: int,
    timesteps: bool,
    confidence: bool,
    wait: bool,
) -> DecodedBatch:
    """Search (N, T, C) emissions on their device, whose labellings are then T wide.

    With `wait` they are as wide as the longest labelling, which the device is waited for to know.

    Raises:
        ValueError: one token could add too much to a score for the sums of the search.
    """
    batch, frames, _ = emissions.shape
    if emissions.stride(-1) != 1:
        emissions = emissions.contiguous()
    if fusion is not None:
        _check_bonus(fusion, emissions.dtype)
    view = None if fusion is None else fusion.view_on(emissions.device)
    labels, labellings = (batch, nbest, frames), (batch, nbest)
    tokens = backend.empty(emissions, labels, torch.int64)
    counts = backend.empty(emissions, labellings, torch.int64)
    scores = backend.empty(emissions, labellings, torch.float64)
    lm_scores = backend.empty(emissions, labellings, torch.float64)
    call = backend.library.BeamSearchCuda(
        options,
        0 if view is None else address_of(view),
        *backend.device_and_stream(emissions),
        emissions.data_ptr(),
        DTYPE_CODES[emissions.dtype],
        batch,
        frames,
        *emissions.stride()[:2],
        lengths.data_ptr(),
        nbest,
        tokens.data_ptr(),
        counts.data_ptr(),
        scores.data_ptr(),
        lm_scores.data_ptr(),
    )
    scratch = backend.empty(emissions, (call.scratch_bytes(),), torch.uint8)
    backend.call("beam_search_cuda", call, scratch.data_ptr())
    longest = int(counts.max()) if wait and counts.numel() else frames

    starts, ends = (emissions.new_zeros(labels, dtype=torch.int64) for _ in range(2))
    sureness = emissions.new_zeros(labels, dtype=torch.float32)
    if timesteps and tokens.numel():
        starts, ends = (backend.empty(emissions, labels, torch.int64) for _ in range(2))
        if confidence:
            sureness = backend.empty(emissions, labels, torch.float32)
        align = backend.library.BeamAlignCuda(
            call,
            longest,
            config.max_workspace_mb << 20,
            starts.data_ptr(),
            ends.data_ptr(),
            sureness.data_ptr() if confidence else 0,
        )
        align_scratch = backend.empty(emissions, (align.scratch_bytes(),), torch.uint8)
        backend.call("beam_align_cuda", align, align_scratch.data_ptr())
    return DecodedBatch(
        tokens[..., :longest],
        counts,
        scores,
        lm_scores,
        starts[..., :longest],
        ends[..., :longest],
        sureness[..., :longest],
    )


def _check_bonus(fusion: Fusion, dtype: torch.dtype) -> None:
    """Where the CPU's search raises once such a token comes up, a kernel could not."""
    limit = 700 if dtype is torch.float64 else 80
    if fusion.largest_bonus > limit:
        raise ValueError(
            f"language model, words and hotwords may add {fusion.largest_bonus:g} nats to a score "
            f"by one token: with {str(dtype).removeprefix('torch.')} emissions on CUDA it must be "
            f"at most {limit}"
        )
