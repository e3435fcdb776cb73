"""Attribution Equilibrium: its explainer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from rapkernels import calls, checks
from rapkernels.backends import Backend
from rapkernels.calls import Start
from rapkernels.channels import Channels
from rapkernels.explainer import Attention, Explainer
from rapkernels.findings import Findings
from rapkernels.graph import Graph
from rapkernels.methods.layer import check_layer, gradients
from rapkernels.outputs import Output
from rapkernels.relevance import sample_view, saturate
from rapkernels.rules.base import Method, Sharing
from rapkernels.rules.choices import RuleChoices
from rapkernels.rules.equilibrium import choose_equilibrium
from rapkernels.start_layer import find_start
from rapkernels.walker import Walk


class AttributionEquilibrium(Explainer):
    """Attribution Equilibrium, first published as Gradient Hedging, of any module.

    Gur et al. name the idea: positive and negative contributions of a gradient-derived map are sent
    back normalised apart, and suppress each other. The paper (arXiv 2205.11109) gives the idea; the
    algorithm is that of the authors' published code.

    The map starts at a layer with activations ``A`` as ``M_k = alpha_k A_k`` over ``|sum M|``,
    where ``alpha_k`` is the mean over positions of the logit's gradient with respect to channel k.
    It is sent back by ``relprop_equilibrium_conv`` and by the z-box rule in the input layer. Pools
    share by the positive part of their inputs. Where the published code is silent or drops
    relevance, this is ours: residual adds share by absolute contribution (their code drops the skip
    branch), concatenations hand each part its own, and every sum that normalises is one over a
    sample (theirs mix the batch).

    The relevance has the shape of the input. It is not conserved: each convolution normalises
    the positive and the negative part to 1, so that the sum of a map is near ``ratio - 2``, less
    what met no message, and says nothing of the logit.

    Everything else is said at :class:`~rapkernels.explainer.Explainer`.

    Args:
        model: the module to explain, in eval mode.
        layer: path of the module at whose output the map starts; None for the last activation
            function, or gated linear unit, after a convolution that still has positions and is no
            gate ("features.29" in VGG-16; in transformers and ConvNeXt inside of the last block's
            MLP, so that "encoder.ln" or "features" takes in all of it).
        ratio: weight r of the positive part; the published values are from 1 to 2. The larger, the
            more of the map is positive.
        backend: "auto" (native where built), "native" or "reference".
        rules: rules for parts of this model, see :class:`~rapkernels.explainer.Explainer`.
        strict: whether operations without a rule are refused, likewise.
        attention: "constant" or "attnlrp", likewise.
        output: which tensor of what the model returns is explained, likewise.
        max_memory: how much memory a call may take, likewise.

    Raises:
        ArgumentTypeError: ``model`` is not a module, ``layer`` not a string or ``ratio`` not a
            number.
        ArgumentError: ``ratio`` is not finite, or ``backend`` or ``attention`` is not known. An
            unknown layer is found at the first call.
        BackendError: the native backend is asked for and not built.
    """

    _settings = ("layer", "ratio")

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        ratio: float = 2.0,
        backend: Backend = "auto",
        rules: RuleChoices | None = None,
        strict: bool = True,
        attention: Attention = "constant",
        output: Output = None,
        max_memory: int | str | None = None,
    ) -> None:
        super().__init__(model, backend, rules, strict, attention, output, max_memory)
        check_layer(layer)
        checks.check_finite_number("ratio", ratio)
        self.layer = layer
        self.ratio = float(ratio)

    @override
    def _method(self) -> Method:
        sharing = Sharing(pool="positive", absorb_zeros=False, positive_part=True)
        return Method("equilibrium", choose_equilibrium, self.ratio, sharing)

    @override
    def _end(self, graph: Graph) -> str | None:
        return find_start(graph, self.model, self.layer, self._classes(graph))

    @override
    def _begin(self, walk: Walk, output: Tensor, target: Tensor, findings: Findings) -> Start:
        channels = walk.program.channels.get(walk.program.end, Channels())
        vectors = channels.vectors(walk.value)
        start = torch.cat(
            [
                channels.restored(
                    equilibrium_start(vectors, channels.vectors(gradient)), walk.value.shape
                )
                for gradient in gradients(walk, output, target)
            ]
        )
        return Start(start, False, calls.scores_of(output.detach(), target))


def equilibrium_start(activations: Tensor, gradient: Tensor) -> Tensor:
    """The gradient-derived start map of Attribution Equilibrium.

    ``M_k = alpha_k A_k`` with ``alpha_k`` the mean of the gradient over the positions of channel
    k, divided by ``|sum M|`` of each sample; 0 where that sum is 0.

    Args:
        activations: ``(N, K, *size)``, the layer's value A.
        gradient: like ``activations``, the gradient of the logit.

    Returns:
        A tensor like ``activations``; what overflows becomes its dtype's largest number.
    """
    positions = list(range(2, activations.dim()))
    # Halves have no room for the products before they are divided by their sum.
    wide = torch.promote_types(activations.dtype, torch.float32)
    alpha = gradient.to(wide).mean(positions, keepdim=True) if positions else gradient.to(wide)
    contribution = alpha * activations
    total = contribution.flatten(1).sum(1, dtype=torch.float64).abs()
    factor = torch.where(total > 0, 1 / total, torch.zeros_like(total))
    return saturate(contribution * sample_view(factor, contribution), activations.dtype)
