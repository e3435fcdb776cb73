"""The models of the zoo: those of torchvision, timm and transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.nets import initialise, initialise_scales

SEED = 0

# What the families are: timm has some 1,300 names.
_TIMM = (
    *("convnext_atto", "convnext_tiny", "convnextv2_atto", "resnet18", "resnet50", "resnet26d"),
    *("resnet50_gn", "resnetv2_50", "seresnet50", "ecaresnet26t", "skresnet18", "resnest14d"),
    *("res2net50_26w_4s", "resnext26ts", "nfnet_f0", "regnetx_002", "regnety_002", "regnetz_b16"),
    *("efficientnet_b0", "tf_efficientnetv2_b0", "tf_efficientnet_lite0", "mobilenetv2_050"),
    *("mobilenetv3_small_050", "mobilenetv3_large_100", "mobilenetv4_conv_small"),
    *("mobilenetv4_hybrid_medium", "densenet121", "vgg11", "repvgg_a0", "inception_v4"),
    *("xception41", "hrnet_w18_small", "ghostnet_050", "vit_tiny_patch16_224"),
    *("vit_base_patch16_224", "vit_medium_patch16_gap_256", "eva02_tiny_patch14_224"),
    *("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"),
    *("beit_base_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("mixer_s32_224", "mixer_b16_224", "gmlp_s16_224", "resmlp_12_224", "cait_xxs24_224"),
    *("crossvit_tiny_240", "davit_tiny", "levit_128s", "hiera_tiny_224", "twins_svt_small"),
    *("xcit_nano_12_p16_224", "pvt_v2_b0", "poolformer_s12", "mobilevit_xxs", "edgenext_xx_small"),
    *("efficientformer_l1", "fastvit_t8", "tiny_vit_5m_224", "maxvit_rmlp_pico_rw_256"),
    *("nextvit_small", "inception_next_tiny", "convmixer_768_32"),
)
_TRANSFORMERS = (
    *("ViT", "ResNet", "ConvNext", "ConvNextV2", "DeiT", "Beit", "Dinov2", "Swin", "RegNet"),
    *("EfficientNet", "MobileNetV2", "Segformer", "Pvt"),
)


def names_of(library: str) -> list[str]:
    """The names of a library's models."""
    if library == "torchvision":
        from torchvision import models

        return list(models.list_models(module=models))
    return list(_TIMM if library == "timm" else _TRANSFORMERS)


def load(library: str, name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A classifier with random weights and statistics, in eval mode, and its input."""
    torch.manual_seed(SEED)
    model, side = LIBRARIES[library](name)
    randomise(model)
    return model.eval().requires_grad_(False), torch.randn(batch, 3, side, side)


def randomise(model: nn.Module) -> None:
    """Weights as at the start of a training, and statistics as in the middle of one."""
    for module in model.modules():
        initialise(module)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    initialise_scales(model)


def _torchvision(name: str) -> tuple[nn.Module, int]:
    from torchvision import models

    slow_to_initialise = name in ("googlenet", "inception_v3")
    options: dict[str, Any] = {"init_weights": False} if slow_to_initialise else {}
    return models.get_model(name, weights=None, **options), 299 if name == "inception_v3" else 224


def _timm(name: str) -> tuple[nn.Module, int]:
    import timm

    model: Any = timm.create_model(name, pretrained=False)
    return model, int(model.default_cfg["input_size"][-1])


def _transformers(name: str) -> tuple[nn.Module, int]:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=1000)
    size = getattr(config, "image_size", 224)
    side = size if isinstance(size, int) else size[0]
    return getattr(transformers, f"{name}ForImageClassification")(config), side


LIBRARIES: dict[str, Callable[[str], tuple[nn.Module, int]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
