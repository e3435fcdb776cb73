"""The variants of RAP: which scalar rule each kind of layer uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Contribution = Literal["rap", "rap_conv"]
Share = Literal["absolute", "ratio"]
FirstStep = Literal["absolute", "author"]


@dataclass(frozen=True)
class Variant:
    """Rule choices of one variant.

    Attributes:
        name: "default", "paper" or "author".
        conv: scalar rule of convolutions; they differ where relevance is negative.
        linear: scalar rule of linear layers.
        add: how a residual add shares relevance.
        pool: how average pools and means share relevance.
        first_step: how the logit is shared among the inputs of the last linear layer.
        fold_batch_norm: whether a BatchNorm becomes part of the convolution before it.
        split_signed: whether positive and negative inputs of a layer are propagated apart, each to
            the full sum.
        drop_at_zero: whether BatchNorm and concatenation drop relevance where their input is 0.
    """

    name: str
    conv: Contribution
    linear: Contribution
    add: Share
    pool: Share
    first_step: FirstStep
    fold_batch_norm: bool
    split_signed: bool
    drop_at_zero: bool


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="default",
            conv="rap_conv",
            linear="rap",
            add="absolute",
            pool="absolute",
            first_step="absolute",
            fold_batch_norm=True,
            split_signed=False,
            drop_at_zero=False,
        ),
        Variant(
            name="paper",
            conv="rap",
            linear="rap",
            add="absolute",
            pool="absolute",
            first_step="absolute",
            fold_batch_norm=True,
            split_signed=False,
            drop_at_zero=False,
        ),
        Variant(
            name="author",
            conv="rap_conv",
            linear="rap",
            add="ratio",
            pool="ratio",
            first_step="author",
            fold_batch_norm=False,
            split_signed=True,
            drop_at_zero=True,
        ),
    )
}
