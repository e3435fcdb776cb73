"""How much maps depend on what a network has learned: a table of randomised layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rapkernels.evaluation import Case, Method, Settings, Table
from rapkernels.evaluation.table import Cell, Heading, Row
from rapkernels.metrics import randomisation


def randomisation_table(
    network: nn.Module, cases: Sequence[Case], methods: Sequence[Method], title: str
) -> Table:
    """A column for each layer: randomised with all layers above it, from the output down.

    The cells are rank correlations of absolute maps with those of the network itself, for the same
    class: a randomised logit may be negative, which turns a map of relevance upside down.
    """
    x = torch.stack([case.pixels for case in cases])
    targets = torch.tensor([case.target for case in cases])
    layers: dict[str, None] = {}
    rows = []
    for method in methods:
        cells: defaultdict[str, list[float]] = defaultdict(list)

        def explain(
            model: nn.Module, x: Tensor, targets: Tensor, method: Method = method
        ) -> Tensor:
            return method.build(model, Settings())(x, targets)

        for stage in randomisation(network, explain, x, targets, absolute=True):
            layers[stage.layer] = None
            cells[stage.layer] += stage.spearman.tolist()
        found = {layer: Cell.of(values) for layer, values in cells.items()}
        rows.append(Row(method.name, method.label, method.control, found))
    headings = tuple(
        Heading(
            layer,
            layer,
            "lower",
            f"rank correlation once the layers from the output down to {layer} are random",
        )
        for layer in layers
    )
    return Table(title, len(cases), headings, tuple(rows))
