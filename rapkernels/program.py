"""A graph made ready to run: every node has its rule, its role and its memory plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapkernels.channels import Channels, find_channels
from rapkernels.errors import LinearisedWarning, UnsupportedNode, UnsupportedOperationError
from rapkernels.findings import warn
from rapkernels.fusion import fuse
from rapkernels.graph import Graph, Node, Template, refs
from rapkernels.nonnegative import nonnegative_values
from rapkernels.roles import Roles, find_roles
from rapkernels.rules.base import Method, NoRuleError, Role, Rule, Site
from rapkernels.rules.classes import carried, family_of, reached, rule_classes
from rapkernels.rules.linearised import Linearised


@dataclass(frozen=True, eq=False)
class Step:
    """One node to run.

    Attributes:
        node: the operation.
        rule: its rule, None for a node whose value carries no relevance.
        role: "input", "output" or "inner".
        inputs: the activations it reads, in the order of its arguments, with repetitions.
        frees: the values that nobody reads after this step.
        operands: what the rule wants beside the operation's arguments.
    """

    node: Node
    rule: Rule | None
    role: Role
    inputs: tuple[str, ...]
    frees: tuple[str, ...]
    operands: Template


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a graph for one method, in the order of execution.

    Attributes:
        graph: the graph.
        steps: its nodes with their rules; what ``end`` does not depend on has none.
        roles: input and output layers.
        end: name of the value where relevance starts.
        head: the number of steps up to that value.
        again: the steps whose values are computed again in the backward, not kept.
        channels: value -> its channels, where they are known.
    """

    graph: Graph
    steps: tuple[Step, ...]
    roles: Roles
    end: str
    head: int
    again: dict[str, Step]
    channels: dict[str, Channels]


def compile_program(graph: Graph, method: Method, end: str | None = None) -> Program:
    """Give every node that relevance can reach its rule.

    Args:
        graph: the graph.
        method: chooses the rules.
        end: name of the value where relevance starts; None for the output.

    Raises:
        UnsupportedOperationError: some operations have no rule; it lists all of them.
        ArgumentError: what the caller chose rules for is not there.
    """
    end = graph.output if end is None else end
    known = rule_classes(graph, method.attention, method.chosen)
    families = {name: family_of(cls) for name, cls in known.items()}
    method.check(graph, families, method.settings)
    within = reached(graph, end, known)
    classes = {name: cls for name, cls in known.items() if name in within}
    parts = {name: None if cls is None else cls.fuses for name, cls in classes.items()}
    fusion = fuse(graph, method.fold_batch_norm, parts)
    roles = find_roles(graph, families)
    nonnegative = nonnegative_values(graph, families)
    senders = {name: carried(graph, name, cls) for name, cls in known.items()}
    channels = find_channels(graph, families, senders)
    rules: dict[str, Rule] = {}
    unsupported: list[UnsupportedNode] = []
    for name, cls in classes.items():
        node = graph.nodes[name]
        role = _role(roles, name)
        is_first = name in roles.inputs
        site = Site(
            node, graph, method, role, fusion, nonnegative, rules, channels.get(name), is_first
        )
        try:
            if cls is None:
                raise NoRuleError("no rule for this operation")
            rules[name] = cls.at(site)
        except NoRuleError as error:
            unsupported.append(UnsupportedNode(name, node.operation, node.module, str(error)))
            rules[name] = Linearised(site)
    for name in known.keys() - within:
        node = graph.nodes[name]
        if node.operation == "aten.as_strided.default":
            reason = "it reads memory in the layout of the export, which values need not have here"
            unsupported.append(UnsupportedNode(name, node.operation, node.module, reason))
    if unsupported and (method.strict or _as_strided(unsupported)):
        raise UnsupportedOperationError(unsupported)
    if unsupported:
        operations = ", ".join(dict.fromkeys(node.operation for node in unsupported))
        warn(
            "operations without a rule hand relevance back as gradient times input over their "
            f"output (strict=False): {operations}",
            LinearisedWarning,
        )
    steps = _steps(graph, rules, roles)
    names = [step.node.name for step in steps]
    length = names.index(end) + 1 if end in names else 0
    return Program(graph, steps, roles, end, length, _again(graph, steps[:length], end), channels)


# Those who read a value each compute it again.
_MOST_READERS = 2


def _again(graph: Graph, steps: Sequence[Step], end: str) -> dict[str, Step]:
    """The steps whose values need not be kept: they take a pass or two over what is kept."""
    found: dict[str, Step] = {}
    for step in steps:
        name, rule = step.node.name, step.rule
        if rule is None or name == end or len(graph.users.get(name, ())) > _MOST_READERS:
            continue
        reads = set(refs((step.node.args, step.node.kwargs)))
        if rule.again == "saved" or (
            rule.again == "input"
            and set(step.inputs) <= found.keys()
            and reads <= {*step.inputs, *graph.attributes, *graph.constants}
        ):
            found[name] = step
    return found


def _as_strided(nodes: Sequence[UnsupportedNode]) -> bool:
    return any(node.operation == "aten.as_strided.default" for node in nodes)


def _role(roles: Roles, name: str) -> Role:
    if name in roles.outputs:
        return "output"
    return "input" if name in roles.inputs else "inner"


def _steps(graph: Graph, rules: dict[str, Rule], roles: Roles) -> tuple[Step, ...]:
    operands = {name: rule.operands for name, rule in rules.items()}
    last_reader: dict[str, str] = {}
    for node in graph.nodes.values():
        for name in refs((node.args, node.kwargs, operands.get(node.name))):
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
            operands=Template(operands.get(node.name, ())),
        )
        for node in graph.nodes.values()
    )
