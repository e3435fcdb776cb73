"""Sharing by squares: what Sharing Ratio Decomposition does at every sum that is no layer."""

from __future__ import annotations

from torch import Tensor

from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Site


def reads_output(site: Site) -> bool:
    """Whether :func:`share_squares` needs the node's value, so that nobody may overwrite it.

    Raises:
        NoRuleError: it does, and the graph does not tell which dimension holds the channels.
    """
    if not site.method.sharing.by_squares:
        return False
    channel_dim(site)
    return True


def keep_for_squares(site: Site, output: Tensor) -> Tensor | None:
    """The node's value where :func:`share_squares` needs it."""
    return output if site.method.sharing.by_squares else None


def share_squares(
    ctx: Context, site: Site, output: Tensor | None, relevance: Relevance
) -> Relevance:
    """Share the relevance of each position of a node's value anew among its channels."""
    if output is None:
        return relevance
    dim = channel_dim(site)
    values = relevance.values.movedim(dim, 1)
    state = ctx.settle(*ctx.ops.share_squares(output.movedim(dim, 1), values, *relevance[1:]))
    return state._replace(values=state.values.movedim(1, dim))


def channel_dim(site: Site) -> int:
    """The dimension of the node's value that holds the feature vectors.

    Raises:
        NoRuleError: the graph does not tell.
    """
    if site.channel_dim is None:
        raise NoRuleError("it is not known which dimension of its value holds the channels")
    return site.channel_dim
