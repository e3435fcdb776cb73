"""The modules of a model and their tensors; torch's own nested generators take far longer."""

from __future__ import annotations

from torch import Tensor, nn


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """As ``model.named_modules()``."""
    found: list[tuple[str, nn.Module]] = []
    met: set[nn.Module] = set()

    def visit(path: str, module: nn.Module) -> None:
        if remove_duplicate:
            if module in met:
                return
            met.add(module)
        found.append((path, module))
        prefix = f"{path}." if path else ""
        for name, child in module._modules.items():
            if child is not None:
                visit(prefix + name, child)

    visit("", model)
    return found


def tensors_of(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers; those that modules share may be there several times."""
    parameters: list[Tensor | None] = []
    buffers: list[Tensor | None] = []
    for _, module in named_modules(model):
        parameters += module._parameters.values()
        buffers += module._buffers.values()
    return [p for p in parameters if p is not None], [b for b in buffers if b is not None]
