"""The options that commands share: which network, which class, which kind of attribution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..evaluation.methods import METHODS
from ..models import DEFAULT_MODEL
from ..variants import VARIANTS

BACKENDS = ("auto", "native", "reference")

Command = TypeVar("Command", bound=Callable[..., Any])


def network_options(command: Command) -> Command:
    """``--model``, ``--weights`` and ``--resize``: the network and how it is shown a photo."""
    command = click.option(
        "--resize",
        type=click.Choice(["crop", "stretch"]),
        default="crop",
        show_default=True,
        help="crop: the network's own resize and centre crop. "
        "stretch: the whole photo at the input size, whatever its aspect ratio.",
    )(command)
    command = click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="State dict of the network (.pth, .pt or .safetensors). Nothing is downloaded.",
    )(command)
    return click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        metavar="NAME",
        help="efficientnet_lite0, torchvision:NAME or timm:NAME; the last two need --weights.",
    )(command)


def method_options(command: Command) -> Command:
    """``--variant`` and ``--backend``: which rules, and what computes them."""
    command = click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="auto: the native kernels where they are built, else the reference.",
    )(command)
    return click.option(
        "--variant",
        type=click.Choice(list(VARIANTS)),
        default="default",
        show_default=True,
        help="Rules of RAP: this library's, the paper's equations, or the authors' code.",
    )(command)


def names(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """A callback: what commas separate, each once, in order; () where nothing is given."""
    found = (name.strip() for name in (value or "").split(","))
    return tuple(dict.fromkeys(name for name in found if name))


def method_option(command: Command) -> Command:
    """``--method``: one that has an explainer of its own."""
    return click.option(
        "--method",
        type=click.Choice([method.name for method in METHODS.values() if method.make]),
        default="rap",
        show_default=True,
        help="The attribution method; compare shows all of them.",
    )(command)


def methods_option(help_text: str) -> Callable[[Command], Command]:
    """``--methods``: a list of names, with commas between them."""
    return click.option(
        "--methods",
        metavar="NAME,...",
        callback=names,
        help=f"{help_text} Known: {', '.join(METHODS)}.",
    )


def target_option(command: Command) -> Command:
    """``--target``: the class to explain."""
    return click.option(
        "--target",
        metavar="N|NAME",
        help="Class to explain, by index or name.  [default: the predicted class]",
    )(command)


def batch_size_option(command: Command) -> Command:
    """``--batch-size``: how many photos go through the network together."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Photos that are explained together; fewer need less memory.",
    )(command)
