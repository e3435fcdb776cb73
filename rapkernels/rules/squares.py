"""Sharing by squares: what Sharing Ratio Decomposition does at every sum that is no layer."""

from __future__ import annotations

from torch import Tensor

from rapkernels.channels import Channels
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Site


def reads_output(site: Site) -> bool:
    """Whether :func:`share_squares` needs the node's value, so that nobody may overwrite it.

    Raises:
        NoRuleError: it does, and the graph does not tell which dimension holds the channels.
    """
    if not site.method.sharing.by_squares:
        return False
    _channels(site)
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
    channels = _channels(site)
    if channels.splits:
        # Rows of the vectors are then no rows of the value, which the pending state is for.
        relevance = Relevance(ctx.materialise(relevance))
    values = channels.vectors(relevance.values)
    state = ctx.settle(*ctx.ops.share_squares(channels.vectors(output), values, *relevance[1:]))
    if channels.splits:
        state = Relevance(ctx.materialise(state))
    return state._replace(values=channels.restored(state.values, relevance.values.shape))


def _channels(site: Site) -> Channels:
    """Where the feature vectors of the node's value are.

    Raises:
        NoRuleError: the graph does not tell.
    """
    if site.channels is None:
        raise NoRuleError("it is not known which dimensions of its value hold the channels")
    return site.channels
