"""What a call will do: the rule and the kernels that each node gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from typing_extensions import override

from rapkernels.program import Program, Step
from rapkernels.tables import Rows, data_frame, format_table

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class PlanRow:
    """One operation of the graph.

    Attributes:
        node: name of the node.
        module: path of the module that it belongs to.
        operation: what it computes.
        rule: what relevance does there; "-" for values that carry none.
        kernel: the native operations that hand relevance back, and in brackets what does the
            products of convolutions and linear layers: "split_conv", "depthwise", "linear" and
            "fused_conv" are kernels of this library, "library" is torch's; "fused_conv or library"
            where the faster is still to be measured. "-" where torch's own operations do all, as
            with the reference backend, and "unknown" where the model has operations that need
            values.
        shape: shape of its value.
        role: "input" for input layers, "output" for the last linear layer, else "".
    """

    node: str
    module: str
    operation: str
    rule: str
    kernel: str
    shape: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Plan(Rows[PlanRow]):
    """What a call will do, in the order of the forward; print it for a table.

    Iterate over it for its rows, or take one by its node, as in ``plan["conv2d"].rule``.
    """

    rows: tuple[PlanRow, ...]

    def to_frame(self) -> DataFrame:
        """A pandas data frame with one row per node; columns are the attributes of its rows.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        names = [field.name for field in fields(PlanRow)]
        return data_frame({name: [getattr(row, name) for row in self.rows] for name in names})

    @override
    def __str__(self) -> str:
        header = ("node", "module", "operation", "rule", "kernel", "shape", "role")
        body = [
            (
                row.node,
                row.module,
                row.operation,
                row.rule,
                row.kernel,
                "x".join(map(str, row.shape)),
                row.role,
            )
            for row in self.rows
        ]
        return format_table(header, body)


def make_plan(program: Program, samples: int, kernels: Mapping[str, str] | None) -> Plan:
    """Describe a program.

    Args:
        program: what a call runs.
        samples: the batch size.
        kernels: from :func:`rapkernels.kernels.find_kernels`.
    """

    def kernel(step: Step) -> str:
        if step.rule is None:
            return "-"
        return "unknown" if kernels is None else kernels.get(step.node.name, "-")

    return Plan(
        tuple(
            PlanRow(
                node=step.node.name,
                module=step.node.module,
                operation=step.node.operation,
                rule="-" if step.rule is None else step.rule.name,
                kernel=kernel(step),
                shape=program.graph.sized(step.node.shape, samples),
                role="" if step.role == "inner" else step.role,
            )
            for step in program.steps
        )
    )
