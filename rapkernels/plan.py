"""The dry run: which rule each node gets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from typing_extensions import override

from rapkernels.program import Program
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
        shape: shape of its value.
        role: "input" for input layers, "output" for the last linear layer, else "".
    """

    node: str
    module: str
    operation: str
    rule: str
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
        header = ("node", "module", "operation", "rule", "shape", "role")
        body = [
            (
                row.node,
                row.module,
                row.operation,
                row.rule,
                "x".join(map(str, row.shape)),
                row.role,
            )
            for row in self.rows
        ]
        return format_table(header, body)


def make_plan(program: Program, samples: int) -> Plan:
    """Describe a program for a batch size."""
    return Plan(
        tuple(
            PlanRow(
                node=step.node.name,
                module=step.node.module,
                operation=step.node.operation,
                rule="-" if step.rule is None else step.rule.name,
                shape=program.graph.sized(step.node.shape, samples),
                role="" if step.role == "inner" else step.role,
            )
            for step in program.steps
        )
    )
