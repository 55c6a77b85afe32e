"""FLOPs as fvcore counts them: one multiply-add = 1."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mate_edge.errors import UsageError, first_line

with warnings.catch_warnings():  # fvcore uses a decorator of torch that is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

ACTIVATIONS = ("aten::relu", "aten::relu_", "aten::clamp", "aten::clamp_")
"""Arithmetic that fvcore passes over without a word; here it is listed as not counted."""


@torch.no_grad()
def count_flops(
    module: nn.Module, inputs: torch.Tensor, name: str = "the network"
) -> tuple[int, Counter[str], Counter[str]]:
    """Return the FLOPs in all and by submodule, and the operators that fvcore did not count.

    Raises:
        UsageError: torch cannot trace the module, which errors call `name`.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one operator counts as nothing
    try:
        return _count(module, inputs)
    except Exception as error:  # fvcore traces, which runs the module's own code
        reason = first_line(error)
        raise UsageError(
            f"the FLOPs of {name} cannot be counted ({reason}): torch.jit.trace must be able to "
            "follow it, so give plain modules that are not scripted"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _count(module: nn.Module, inputs: torch.Tensor) -> tuple[int, Counter[str], Counter[str]]:
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ignored: Counter[str] = Counter()

    def note(operator: str) -> Callable[[list[Any], list[Any]], int]:
        def count_nothing(inputs: list[Any], outputs: list[Any]) -> int:
            ignored[operator] += 1
            return 0

        return count_nothing

    for operator in ACTIVATIONS:
        analysis.set_op_handle(operator, note(operator))
    by_module = Counter({name: round(flops) for name, flops in analysis.by_module().items()})
    return round(analysis.total()), by_module, Counter(analysis.unsupported_ops()) + ignored
