"""From the user's module to a :class:`~rapkernels.graph.Graph`, through ``torch.export``."""

from __future__ import annotations

import copy
import operator
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from rapkernels.decompose import decompose
from rapkernels.errors import ArgumentError, ExportError
from rapkernels.export_threads import prepare_export
from rapkernels.functionalise import functionalise
from rapkernels.graph import Dimension, Graph, Kind, Node, Ref, bind_arguments
from rapkernels.logits import without_softmax

# Their results depend on the shape of their input alone.
_READS_SHAPE = {
    f"aten.{name}.default"
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty"),
    )
}

# Of their second argument they read the type, device or shape.
_READS_FIRST = {"aten.type_as.default", "aten.to.other", "aten.expand_as.default"}

# They ask for the memory layout that the model was exported with, which values need not have here.
_VIEWS = {"aten.view.default", "aten._unsafe_view.default"}

# torch.export patches process-wide state while it traces.
_EXPORT_LOCK = threading.Lock()


def capture(module: torch.nn.Module, x: Tensor) -> Graph:
    """Export a module for inputs like ``x`` and return its functional graph.

    The graph holds for any batch size where ``torch.export`` allows it (``graph.batch`` is then
    set), else for the batch size of ``x``. It ends before a softmax that is the model's output. The
    module is not modified.

    Raises:
        ArgumentError: the model itself refuses inputs of the shape of ``x``, does not return one
            tensor, or its output does not depend on ``x``.
        ExportError: the model runs and cannot be exported.
    """
    with _EXPORT_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare_export()
        program, graph, names = functionalise(_export(_double(module), x))
        decompose(graph)
    return without_softmax(_convert(module, program, graph, names))


def _double(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module's structure that shares its tensors.

    ``torch.export`` puts fake tensors into the module while it traces and runs the module's side
    effects: other threads that use the module must not see that.
    """
    tensors = {
        id(value): _exportable(value)
        for child in module.modules()
        for held in (child._parameters, child._buffers, vars(child))
        for value in held.values()
        if isinstance(value, Tensor)
    }
    try:
        return copy.deepcopy(module, tensors)
    except Exception:  # An attribute that cannot be copied, such as a lock or a generator.
        return module


def _exportable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of one that was made in inference mode: export takes none."""
    if not tensor.is_inference():
        return tensor
    copied = tensor.detach().clone()
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(copied, requires_grad=False) if is_parameter else copied


def _export(module: torch.nn.Module, x: Tensor) -> ExportedProgram:
    # An example batch of 1 would fix the batch size at 1.
    example = x.new_zeros((2, *x.shape[1:]))
    shapes = ({0: Dim.DYNAMIC},)
    try:
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception:
        _check_runs(module, x)
    try:
        return torch.export.export(module, (torch.zeros_like(x),), strict=False)
    except Exception as error:
        raise ExportError(
            "model must be exportable by torch.export (no Python control flow that depends on the "
            f"values of tensors), but exporting {type(module).__name__} for x of shape "
            f"{list(x.shape)} raised {type(error).__name__}: {_first_line(error)}"
        ) from error


def _check_runs(module: torch.nn.Module, x: Tensor) -> None:
    """Tell a model that refuses ``x`` from one that cannot be exported."""
    if isinstance(module, torch.jit.ScriptModule | torch.nn.DataParallel):
        return  # Those cannot be run apart from their buffers.
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        torch.func.functional_call(module, buffers, (torch.zeros_like(x),))
    except Exception as error:
        raise ArgumentError(
            f"x must have the shape that the model takes, but for x of shape {list(x.shape)} "
            f"{type(module).__name__} itself raised {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _convert(
    module: torch.nn.Module, program: ExportedProgram, fx_graph: fx.Graph, names: dict[str, str]
) -> Graph:
    attributes: dict[str, str] = {}
    constants: dict[str, Any] = {}
    inputs: list[str] = []
    for spec in program.graph_signature.input_specs:
        name, path = names[spec.arg.name], spec.target
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif path is not None and _has_tensor(module, path):
            attributes[name] = path
        elif path is not None:
            constants[name] = program.constants[path]
    outputs = [
        names[spec.arg.name]
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
    ]
    if len(outputs) != 1:
        raise ArgumentError(
            f"model must return exactly one tensor, but {type(module).__name__} returns "
            f"{len(outputs)}: wrap it in a module that returns the logits"
        )
    placeholder = next(node for node in fx_graph.nodes if node.name == inputs[0])
    size = placeholder.meta["val"].shape[0]
    nodes = _nodes(program, fx_graph, inputs[0], outputs[0], constants)
    if outputs[0] != inputs[0] and (
        outputs[0] not in nodes or nodes[outputs[0]].kind != "activation"
    ):
        raise ArgumentError(
            f"model must compute its output from x, but {type(module).__name__} "
            "returns a tensor that does not depend on x, or by integers alone"
        )
    return Graph(
        nodes=nodes,
        input=inputs[0],
        output=outputs[0],
        attributes=attributes,
        constants=constants,
        batch=size.node.expr if isinstance(size, torch.SymInt) else None,
        shapes={
            node.name: _shape(node)
            for node in fx_graph.nodes
            if node.op in ("placeholder", "get_attr")
        },
    )


def _has_tensor(module: torch.nn.Module, path: str) -> bool:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return isinstance(found, Tensor)


def _nodes(
    program: ExportedProgram,
    fx_graph: fx.Graph,
    input_name: str,
    output_name: str,
    constants: dict[str, Any],
) -> dict[str, Node]:
    """Convert what the output needs; an element of a result becomes a node of its own."""
    nodes: dict[str, Node] = {}
    active = {input_name}
    needed = _needed(fx_graph, output_name)
    for node in fx_graph.nodes:
        if node not in needed or node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            constants[node.name] = getattr(program.graph_module, str(node.target))
            continue
        is_element = node.target is operator.getitem and _is_sequence(node.args[0])
        if _is_sequence(node) and all(user.target is operator.getitem for user in node.users):
            continue
        source = node.args[0] if is_element else node
        kind: Kind = "constant"
        read = source.all_input_nodes
        if (
            any(
                other.name in active
                for other in (read[:1] if str(source.target) in _READS_FIRST else read)
            )
            and str(source.target) not in _READS_SHAPE
            and (_is_continuous(node.meta.get("val")) or _is_sequence(node))
        ):
            kind = "activation"
            active.add(node.name)
        nodes[node.name] = _node(node, source, kind)
    return nodes


def _is_continuous(value: Any) -> bool:
    """Masks and indices choose and count: they are constants to relevance."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _needed(fx_graph: fx.Graph, output_name: str) -> set[fx.Node]:
    pending = [node for node in fx_graph.nodes if node.name == output_name]
    needed: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


def _is_sequence(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), tuple | list)


def _node(node: fx.Node, source: fx.Node, kind: Kind) -> Node:
    args = tuple(_own(value) for value in source.args)
    kwargs = {key: _own(value) for key, value in source.kwargs.items()}
    target: Any = source.target
    if str(target) == "aten.squeeze.default":
        # A batch of one sample stays a batch.
        size = source.args[0].meta["val"].shape  # type: ignore[union-attr]
        ones = [dim for dim, edge in enumerate(size) if isinstance(edge, int) and edge == 1]
        target, args = torch.ops.aten.squeeze.dims, (args[0], ones)
    return Node(
        name=node.name,
        operation=str(target) if hasattr(target, "_schema") else getattr(target, "__name__", "?"),
        target=_reshape if str(target) in _VIEWS else target,
        args=args,
        kwargs=kwargs,
        arguments=bind_arguments(target, args, kwargs),
        modules=tuple(path for path, _ in source.meta.get("nn_module_stack", {}).values()),
        kind=kind,
        shape=_shape(node),
        index=node.args[1] if source is not node else None,  # type: ignore[arg-type]
    )


def _reshape(self: Tensor, size: Any) -> Tensor:
    return self.reshape(size)


def _own(value: Any) -> Any:
    """Arguments as plain Python, with :class:`Ref` for nodes."""
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return [_own(item) for item in value]
    if isinstance(value, slice):
        return slice(_own(value.start), _own(value.stop), _own(value.step))
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return value


def _shape(node: fx.Node) -> tuple[Dimension, ...]:
    shape = getattr(node.meta.get("val"), "shape", ())
    return tuple(dim.node.expr if isinstance(dim, torch.SymInt) else int(dim) for dim in shape)
