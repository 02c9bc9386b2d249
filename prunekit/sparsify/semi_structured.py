"""2:4 weights in the compressed form that torch's sparse kernels on CUDA multiply by."""

from __future__ import annotations

import torch
from torch import nn

from prunekit.core.density import Pattern
from prunekit.core.sparsity import SparsityPlan
from prunekit.networks.zeros import fits, verify
from prunekit.support.errors import UsageError

TWO_OF_FOUR = Pattern(2, 4)


@torch.no_grad()
def semi_structured(model: nn.Module, plan: SparsityPlan) -> list[str]:
    """Compress the weights of 2:4 linear layers in place, for inference; gives the layers' names.

    ``model`` is on a CUDA device, in fp16 or bf16 as a rule. Convolutions stay as they are, and so
    do layers that torch's kernels do not take, for their shape. Raises ModelError where weights are
    not as the plan says, and UsageError where no layer could be compressed, with torch's reason.
    Save the network before: the compressed weights are not in the plan's form. See
    ``torch.sparse.to_sparse_semi_structured``.
    """
    verify(model, plan)
    done, reasons = [], []
    for layer in plan.sparse:
        module = model.get_submodule(layer.name)
        if not isinstance(module, nn.Linear) or not fits(module.weight != 0, TWO_OF_FOUR):
            continue
        try:
            weight = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
        except RuntimeError as error:
            reasons.append(f"{layer.name}: {error}")
            continue
        module.weight = nn.Parameter(weight, requires_grad=False)
        done.append(layer.name)
    if not done:
        why = reasons[0] if reasons else f"the plan's pattern is {plan.pattern}"
        raise UsageError(f"no linear layer could be compressed as 2:4 ({why})")
    return done
