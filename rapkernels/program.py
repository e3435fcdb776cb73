"""A graph made ready to run: every node has its rule, its role and its memory plan."""

from __future__ import annotations

from dataclasses import dataclass

from rapkernels.errors import UnsupportedNode, UnsupportedOperationError
from rapkernels.fusion import fuse
from rapkernels.graph import Graph, Node, refs
from rapkernels.nonnegative import nonnegative_values
from rapkernels.roles import Roles, find_roles
from rapkernels.rules.base import NoRuleError, Role, Rule, Site
from rapkernels.rules.registry import rule_class
from rapkernels.variants import Variant


@dataclass(frozen=True, eq=False)
class Step:
    """One node to run.

    Attributes:
        node: the operation.
        rule: its rule, None for a node whose value carries no relevance.
        role: "input", "output" or "inner".
        inputs: the activations it reads, in the order of its arguments, with repetitions.
        frees: the values that nobody reads after this step.
    """

    node: Node
    rule: Rule | None
    role: Role
    inputs: tuple[str, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a graph for one variant, in the order of execution."""

    graph: Graph
    steps: tuple[Step, ...]
    roles: Roles


def compile_program(graph: Graph, variant: Variant) -> Program:
    """Give every node its rule.

    Raises:
        UnsupportedOperationError: some operations have no rule; it lists all of them.
    """
    active = [node for node in graph.nodes.values() if node.kind == "activation"]
    classes = {node.name: rule_class(graph, node) for node in active}
    families = {name: "custom" if cls is None else cls.family for name, cls in classes.items()}
    parts = {name: None if cls is None else cls.fuses for name, cls in classes.items()}
    fusion = fuse(graph, variant, parts)
    roles = find_roles(graph, families)
    nonnegative = nonnegative_values(graph, families)
    rules: dict[str, Rule] = {}
    unsupported: list[UnsupportedNode] = []
    for node in active:
        cls = classes[node.name]
        site = Site(node, graph, variant, _role(roles, node.name), fusion, nonnegative, rules)
        try:
            if cls is None:
                raise NoRuleError("no rule for this operation")
            rules[node.name] = cls.at(site)
        except NoRuleError as error:
            unsupported.append(UnsupportedNode(node.name, node.operation, node.module, str(error)))
    if unsupported:
        raise UnsupportedOperationError(unsupported)
    return Program(graph, _steps(graph, rules, roles), roles)


def _role(roles: Roles, name: str) -> Role:
    if name in roles.outputs:
        return "output"
    return "input" if name in roles.inputs else "inner"


def _steps(graph: Graph, rules: dict[str, Rule], roles: Roles) -> tuple[Step, ...]:
    last_reader: dict[str, str] = {}
    for node in graph.nodes.values():
        operands = rules[node.name].operands if node.name in rules else ()
        for name in refs((node.args, node.kwargs, operands)):
            last_reader[name] = node.name
    frees: dict[str, list[str]] = {}
    for name, reader in last_reader.items():
        if name != graph.output:
            frees.setdefault(reader, []).append(name)
    return tuple(
        Step(
            node=node,
            rule=rules.get(node.name),
            role=_role(roles, node.name),
            inputs=graph.activations(node) if node.name in rules else (),
            frees=tuple(frees.get(node.name, ())),
        )
        for node in graph.nodes.values()
    )
