"""From the user's module to a :class:`~rapkernels.graph.Graph`, through ``torch.export``."""

from __future__ import annotations

import copy
import operator
import threading
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from rapkernels.decompose import decompose
from rapkernels.errors import ArgumentError, ExportError
from rapkernels.export_threads import prepare_export
from rapkernels.functionalise import functionalise
from rapkernels.graph import Dimension, Expression, Graph, Kind, Node, Ref, bind_arguments
from rapkernels.inputs import Inputs
from rapkernels.logits import without_softmax
from rapkernels.outputs import OutputPath, select_output
from rapkernels.samples import place_samples

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


def capture(module: torch.nn.Module, x: Any, output: OutputPath = ()) -> Graph:
    """Export a module for inputs like ``x`` and return its functional graph.

    The graph holds for any batch size where ``torch.export`` allows it, else for the batch size of
    ``x`` (``graph.fixed_batch`` is then set). It ends before a softmax that is the model's output.
    The module is not modified.

    Args:
        module: the module.
        x: what it takes, as the caller gives it or :class:`~rapkernels.inputs.Inputs`.
        output: where the tensor is in what it returns, from
            :func:`rapkernels.outputs.read_output`. The graph has what that tensor needs.

    Raises:
        ArgumentError: the model itself refuses inputs of the shape of ``x``, does not return one
            tensor at ``output``, or that does not depend on ``x``.
        ExportError: the model runs and cannot be exported.
    """
    inputs = Inputs.of(module, x)
    with (
        _EXPORT_LOCK,
        # What torch.compile made would be compiled for the tracer's tensors.
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        prepare_export()
        call = _Call(_double(module), inputs, output, type(module).__name__)
        program = _export_for_any(call, inputs)
        if program is not None:
            graph = _convert(module, inputs, program)
        else:

            def fixed(samples: int) -> Graph:
                return _convert(module, inputs, _export_for(call, inputs, samples), samples)

            graph = place_samples(fixed(inputs.samples), inputs.samples, fixed)
    return without_softmax(graph)


# Where the model is in what is exported.
_MODEL = "model"


class _Call(torch.nn.Module):
    """A model as a function of plain tensors that returns one tensor."""

    def __init__(
        self, model: torch.nn.Module, inputs: Inputs, output: OutputPath, name: str
    ) -> None:
        super().__init__()
        self.add_module(_MODEL, model)
        self.inputs, self.output, self.name = inputs, output, name
        self.training = model.training

    def forward(self, *tensors: Tensor) -> Tensor:
        """Run the model and choose from what it returns."""
        args, kwargs = self.inputs.arguments(tensors)
        return select_output(self.get_submodule(_MODEL)(*args, **kwargs), self.output, self.name)


def _path_in_model(path: str) -> str:
    return path.removeprefix(_MODEL).removeprefix(".")


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


def _export_for_any(call: _Call, inputs: Inputs) -> ExportedProgram | None:
    """The program for any batch size; None where the model can be exported for none or one."""
    # An example batch of 1 would fix the batch size at 1.
    example = inputs.zeros(2).tensors
    shapes = {"tensors": tuple({0: Dim.DYNAMIC} for _ in example)}
    try:
        return torch.export.export(call, example, dynamic_shapes=shapes, strict=False)
    except ArgumentError:
        raise
    except Exception:
        _check_runs(call, inputs)
    return None


def _export_for(call: _Call, inputs: Inputs, samples: int) -> ExportedProgram:
    try:
        return torch.export.export(call, inputs.zeros(samples).tensors, strict=False)
    except Exception as error:
        raise ExportError(
            "model must be exportable by torch.export (no Python control flow that depends on the "
            f"values of tensors), but exporting {call.name} for {inputs.shapes()} raised "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error


def _check_runs(call: _Call, inputs: Inputs) -> None:
    """Tell a model that refuses its inputs from one that cannot be exported."""
    model = call.get_submodule(_MODEL)
    if isinstance(model, torch.jit.ScriptModule | torch.nn.DataParallel):
        return  # Those cannot be run apart from their buffers.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        arguments = inputs.arguments(inputs.zeros(inputs.samples).tensors)
        torch.func.functional_call(model, buffers, *arguments)
    except Exception as error:
        raise ArgumentError(
            f"x must have the shape that the model takes, but for {inputs.shapes()} "
            f"{call.name} itself raised {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _convert(
    module: torch.nn.Module,
    given: Inputs,
    exported: ExportedProgram,
    fixed_batch: int | None = None,
) -> Graph:
    program, fx_graph, names = functionalise(exported)
    decompose(fx_graph)
    attributes: dict[str, str] = {}
    constants: dict[str, Any] = {}
    placeholders: list[str] = []
    for spec in program.graph_signature.input_specs:
        name, path = names[spec.arg.name], spec.target
        if spec.kind is InputKind.USER_INPUT:
            placeholders.append(name)
        elif path is not None and _has_tensor(module, _path_in_model(path)):
            attributes[name] = _path_in_model(path)
        elif path is not None:
            constants[name] = program.constants[path]
    inputs: dict[str, Kind] = {
        name: "activation" if tensor.is_floating_point() else "constant"
        for name, tensor in zip(placeholders, given.tensors, strict=True)
    }
    (output,) = [
        names[spec.arg.name]
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
    ]
    shapes = _Shapes(fx_graph, placeholders)
    graph = Graph(
        nodes=_nodes(program, fx_graph, inputs, output, constants, shapes),
        inputs=inputs,
        output=output,
        attributes=attributes,
        constants=constants,
        batch=shapes.batch,
        shapes={
            node.name: shapes.of(node)
            for node in fx_graph.nodes
            if node.op in ("placeholder", "get_attr")
        },
        fixed_batch=fixed_batch,
    )
    if not graph.is_activation(output):
        raise ArgumentError(
            f"model must compute its output from x, but {type(module).__name__} "
            "returns a tensor that does not depend on x, or by integers alone"
        )
    return graph


def _has_tensor(module: torch.nn.Module, path: str) -> bool:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return isinstance(found, Tensor)


def _nodes(
    program: ExportedProgram,
    fx_graph: fx.Graph,
    inputs: dict[str, Kind],
    output_name: str,
    constants: dict[str, Any],
    shapes: _Shapes,
) -> dict[str, Node]:
    """Convert what the output needs; an element of a result becomes a node of its own."""
    nodes: dict[str, Node] = {}
    active = {name for name, kind in inputs.items() if kind == "activation"}
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
        nodes[node.name] = _node(node, source, kind, shapes.of(node))
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


def _node(node: fx.Node, source: fx.Node, kind: Kind, shape: tuple[Dimension, ...]) -> Node:
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
        modules=_modules(source),
        kind=kind,
        shape=shape,
        index=node.args[1] if source is not node else None,  # type: ignore[arg-type]
    )


def _modules(node: fx.Node) -> tuple[str, ...]:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return tuple(_path_in_model(path) for path in stack if path)


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


class _Shapes:
    """Shapes of a graph's values, with one symbol for the batch size of all inputs.

    Attributes:
        batch: the symbol, None where the export fixed the batch size.
    """

    def __init__(self, fx_graph: fx.Graph, placeholders: Collection[str]) -> None:
        sizes = [node.meta["val"].shape[0] for node in fx_graph.nodes if node.name in placeholders]
        symbols = [size.node.expr for size in sizes if isinstance(size, torch.SymInt)]
        self.batch: Expression | None = symbols[0] if symbols else None
        # Inputs that never meet keep symbols of their own in the export.
        self._same = {symbol: symbols[0] for symbol in symbols[1:] if symbol != symbols[0]}

    def of(self, node: fx.Node) -> tuple[Dimension, ...]:
        """The shape of a node's value; () for what is no tensor."""
        shape = getattr(node.meta.get("val"), "shape", ())
        return tuple(
            dim.node.expr.subs(self._same) if isinstance(dim, torch.SymInt) else int(dim)
            for dim in shape
        )
