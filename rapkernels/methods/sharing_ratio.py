"""Sharing Ratio Decomposition: its explainer."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from rapkernels import calls, checks
from rapkernels.backends import Backend
from rapkernels.calls import Explained, Start
from rapkernels.channels import Channels
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.explainer import Explainer
from rapkernels.findings import Findings
from rapkernels.graph import Graph
from rapkernels.inputs import Several
from rapkernels.methods.layer import check_layer, gradients
from rapkernels.outputs import Output
from rapkernels.relevance import sample_view, saturate
from rapkernels.rules.base import Method, Sharing
from rapkernels.rules.choices import RuleChoices
from rapkernels.rules.sharing_ratio import choose_sharing_ratio
from rapkernels.start_layer import find_start
from rapkernels.walker import Walk

StartForm = Literal["gradient", "normalised"]
STARTS = ("gradient", "normalised")


class SharingRatio(Explainer):
    """Sharing Ratio Decomposition (Han et al., ICLR 2024) of any module.

    The unit is the vector of a position over its channels. Of the pre-activation vector of position
    j in the next layer, the vector of position i has the sharing ratio

        mu_ij = <v_ij, v_j> / |v_j|^2

    where ``v_ij`` is what i adds to ``v_j``, and relevance goes back as ``R_i = sum_j mu_ij R_j``.
    The bias of a layer is shared equally among the positions it reads within the image. Relevance
    is conserved: a map sums to its start.

    That contributions to pre-activations count, and that nothing is stabilised or clipped, is the
    paper's; its equations could not be read, so that the form of ``mu``, the share of the bias, the
    rules of pools (switches), residual adds (branch ratios) and concatenations, which follow from
    it, and the start are inferred. Ratios are unbounded where contributions cancel. Attention, of
    which the paper says nothing, has the vector of a token over all heads: its weights ``A`` are
    constants, and token i sends ``A_ij v_i``, each head by its own weights, to token j. So does a
    linear layer over positions (mixers), with parameters for ``A``.

    The map is one number for each position of the input, ``(N, H, W)``.
    Everything else is said at :class:`~rapkernels.explainer.Explainer`.

    Args:
        model: the module to explain, in eval mode.
        layer: path of the module at whose output the map starts; None for the last activation
            function, or gated linear unit, after a convolution that still has positions and is no
            gate ("features.29" in VGG-16; in transformers and ConvNeXt inside of the last block's
            MLP, so that "encoder.ln" or "features" takes in all of it).
        start: the class-specific share of a position of that layer: "gradient", the inner product
            of its vector with the gradient of the logit (inferred), which after global average
            pooling and a linear layer sums to the logit less its bias; or "normalised", the same
            divided by the logit.
        backend: "auto" (native where built), "native" or "reference".
        rules: rules for parts of this model, see :class:`~rapkernels.explainer.Explainer`.
        strict: whether operations without a rule are refused, likewise.
        output: which tensor of what the model returns is explained, likewise.
        max_memory: how much memory a call may take, likewise.

    Raises:
        ArgumentTypeError: ``model`` is not a module or ``layer`` not a string.
        ArgumentError: ``start`` or ``backend`` is not known. An unknown layer is found at the first
            call.
        BackendError: the native backend is asked for and not built.
    """

    _settings = ("layer", "start")

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        start: StartForm = "gradient",
        backend: Backend = "auto",
        rules: RuleChoices | None = None,
        strict: bool = True,
        output: Output = None,
        max_memory: int | str | None = None,
    ) -> None:
        super().__init__(model, backend, rules, strict, output=output, max_memory=max_memory)
        check_layer(layer)
        checks.check_choice("start", start, STARTS)
        self.layer = layer
        self.start = start

    def receptive_field(
        self, x: Tensor | Several, layer: str, position: tuple[int, ...] | None = None
    ) -> Any:
        """The effective receptive field of one feature vector: its shares of the input's positions.

        Args:
            x: ``(N, C, *size)``, what the model takes, or several, as for :meth:`attribute`.
            layer: path of the module that computes the vector.
            position: its position among the module's output, (row, col) of an image; None where
                the output has no positions.

        Returns:
            ``(N, *size)``, in the dtype of ``x``; it sums to 1 where the vector is not 0 and no
            vector on the way is. Of several inputs each has its own, and the sum is that over all.

        Raises:
            ArgumentError, ArgumentTypeError: the layer or the position is not there.
            Else as :meth:`attribute`.
        """
        if not isinstance(layer, str):
            raise ArgumentTypeError(f"layer must be a module path, got {type(layer).__name__}")
        inputs, findings = self._check(x)
        with calls.settings(inputs):
            program = self._program_to(
                inputs, findings, partial(find_start, model=self.model, layer=layer)
            )
            shape = program.graph.sized(program.graph.shape_of(program.end), inputs.samples)
            channels = program.channels.get(program.end, Channels())
            index = _index(position, channels.vectors(inputs.tensors[0].new_empty(shape)).shape[2:])
            if inputs.samples == 0:
                empty = calls.empty(program, inputs, 1, ())
                return inputs.packed(self._maps(program, empty, False)[0])
            walk = self._walk(program, inputs)
            value = walk.forward_to_start([calls.fast_layout(t) for t in inputs.tensors])
            vectors = torch.zeros_like(channels.vectors(value))
            # Any split over the channels will do: the next step reads their sum.
            vectors[index] = 1 / vectors.shape[1]
            start = channels.restored(vectors, value.shape)
            score = start.new_ones(1, inputs.samples)
            relevance, _ = calls.send_back(walk, inputs, Start(start, False, score))
            explained = Explained(relevance, {}, score, score)
            fields, _ = self._maps(program, explained, False)
            findings.settle()
            return inputs.packed(fields)

    @override
    def _method(self) -> Method:
        sharing = Sharing(pool="ratio", add="ratio", absorb_zeros=False, by_squares=True)
        return Method("sharing_ratio", choose_sharing_ratio, None, sharing)

    @override
    def _end(self, graph: Graph) -> str | None:
        return find_start(graph, self.model, self.layer, self._classes(graph))

    @override
    def _begin(self, walk: Walk, output: Tensor, target: Tensor, findings: Findings) -> Start:
        score = calls.scores_of(output.detach(), target)
        parts = []
        for gradient, logit in zip(gradients(walk, output, target), score, strict=True):
            # Halves have no room for a product that is then divided by a small logit.
            share = walk.value.to(torch.promote_types(logit.dtype, torch.float32)) * gradient
            if self.start == "normalised":
                whole = torch.where(logit != 0, 1 / logit.double(), 0.0)
                share = share * sample_view(whole, share)
            parts.append(saturate(share, walk.value.dtype))
        return Start(torch.cat(parts), False, score)

    @override
    def _map(self, relevance: Tensor, channels: Channels) -> Tensor:
        return channels.vectors(relevance).sum(1)


def _index(position: tuple[int, ...] | None, size: tuple[int, ...]) -> tuple[int | slice, ...]:
    """What selects the vector of a position in ``(N, C, *size)``, in all samples."""
    given = () if position is None else position
    if not isinstance(given, tuple | list) or not all(
        isinstance(part, int) and not isinstance(part, bool) for part in given
    ):
        raise ArgumentTypeError(f"position must be a tuple of ints or None, got {position!r}")
    if len(given) != len(size) or not all(
        0 <= part < limit for part, limit in zip(given, size, strict=True)
    ):
        raise ArgumentError(
            f"position must be {len(size)} ints within the size {list(size)} of the layer's "
            f"output, got {tuple(given)}"
        )
    return slice(None), slice(None), *given
