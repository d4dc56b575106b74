"""When a call may go straight to the kernels, past torch's dispatcher; who differentiates it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


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


def derivative_asked_of(*tensors: Tensor | None) -> str | None:
    """The transform, if any, that differentiates by one of the tensors; vmap alone is none."""
    transformed = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling() or not (transformed or forward_ad._current_level >= 0):
        return None
    for tensor in tensors:
        level = tensor
        while level is not None:
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(level)
            batched = wrapped and not torch._C._functorch.is_gradtrackingtensor(level)
            if wrapped and not batched and level.requires_grad:
                return "torch.func.grad, vjp and jacrev"
            # A batch of dual numbers has its tangent one level further in.
            dual = not batched and forward_ad._current_level >= 0
            if dual and forward_ad.unpack_dual(level).tangent is not None:
                return "forward-mode differentiation"
            level = torch._C._functorch.get_unwrapped(level) if wrapped else None
    return None
