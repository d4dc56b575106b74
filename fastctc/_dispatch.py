"""When an eager call may go straight to the kernels, past torch's dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor


def wants_dispatcher(x: Tensor) -> bool:
    """Whether something that works by dispatching has to see a call on `x`.

    That is a tracer, a dispatch mode, a tensor of its own class, or one without data.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or x.is_meta
    )


def is_transformed(grad_out: Tensor) -> bool:
    """Whether `grad_out` stands for several (is_grads_batched) or is seen by torch.func."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(grad_out)
    )
