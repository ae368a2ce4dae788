"""Zero gradients for the parameters of closed blocks.

The authors zero one flat gradient buffer a step, so weight decay and momentum act on closed blocks too; a PyTorch
skip alone leaves their gradient None. Tying the closed parameters to the activation that follows them hands them
zeros, which also is what lets plain DistributedDataParallel run without ``find_unused_parameters``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import register_notrace_function
from torch import Tensor


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *closed: Tensor) -> Tensor:
        ctx.save_for_backward(*closed)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        # Fresh storage at every backward: autograd may take a tensor over as .grad and accumulate into it.
        zeros = [torch.empty_like(parameter) for parameter in ctx.saved_tensors]
        torch._foreach_zero_(zeros)
        return grad, *zeros


@torch.compiler.disable
def tie_zero_gradients(x: Tensor, closed: Sequence[Tensor]) -> Tensor:
    """Return x; its backward also gives every tensor in ``closed`` that is trained a gradient of zeros."""
    trained = [parameter for parameter in closed if parameter.requires_grad]
    if not trained:
        return x
    tied: Tensor = _ZeroGradients.apply(x, *trained)
    return tied


register_notrace_function(tie_zero_gradients)
