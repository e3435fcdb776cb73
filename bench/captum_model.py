"""captum's one requirement on a model for LRP: every addition is an ``Addition_Module``."""

from __future__ import annotations

import importlib
import types
from typing import Any

from torch import Tensor, nn


def with_addition_modules(model: nn.Module) -> nn.Module:
    """Give each of torchvision's ResNet bottlenecks captum's addition module, in place.

    captum documents this as needed before LRP; without it the relevance of a ResNet-50 grows
    beyond 1e30. Other models are returned as they are.
    """
    if type(model).__name__ != "ResNet":
        return model
    addition = importlib.import_module("captum.attr._utils.custom_modules").Addition_Module
    for module in model.modules():
        if type(module).__name__ == "Bottleneck":
            module.add_module("addition", addition())
            setattr(module, "forward", types.MethodType(_bottleneck_forward, module))  # noqa: B010
    return model


def _bottleneck_forward(block: Any, x: Tensor) -> Tensor:
    inner = block.relu(block.bn1(block.conv1(x)))
    inner = block.relu(block.bn2(block.conv2(inner)))
    inner = block.bn3(block.conv3(inner))
    shortcut = x if block.downsample is None else block.downsample(x)
    output: Tensor = block.relu(block.addition(inner, shortcut))
    return output
