"""What all methods that walk a model's graph share: :class:`Explainer`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from rapkernels import calls, checks, memory
from rapkernels.backends import Backend, check_backend, resolve_backend
from rapkernels.cache import cache_of
from rapkernels.calls import Explained, Start
from rapkernels.captured import Captured
from rapkernels.channels import Channels
from rapkernels.errors import ArgumentError, ExportError
from rapkernels.findings import Findings
from rapkernels.graph import Graph
from rapkernels.inputs import Inputs, Several, check_finite_inputs, read_inputs
from rapkernels.kernels import find_kernels
from rapkernels.outputs import Output, read_output
from rapkernels.parts import BeginOf, Call, Part, Whole, parts_of
from rapkernels.plan import Plan, make_plan
from rapkernels.program import Program
from rapkernels.report import Recorder, Report
from rapkernels.rules.base import Method
from rapkernels.rules.choices import Classes, RuleChoices, read_choices, shown
from rapkernels.rules.classes import rule_classes
from rapkernels.targets import Target, Targets, resolve_target, resolve_targets
from rapkernels.walker import Bounds, Walk

Maps = Tensor | dict[str, Tensor] | tuple[Any, ...]
Attention = Literal["constant", "attnlrp"]
ATTENTION = ("constant", "attnlrp")
Precision = Literal["fp32", "bf16"]
PRECISIONS = ("fp32", "bf16")


class Explainer(ABC):
    """Explains the decisions of any module by relevance that is sent back through its graph.

    The module is exported once per input shape, never modified, and its parameters are read anew at
    each call. An explainer may be used by several threads at once.

    On a GPU a call waits for the device once, at its end, to read whether the input was finite and
    so on. It can be captured in a CUDA graph, without those checks, once a call with an input of
    this shape has come before.

    Args:
        model: the module to explain, in eval mode.
        backend: "auto" (native where built), "native" or "reference".
        rules: rules for parts of this model, before those of the method and of
            :func:`rapkernels.register_rule`: from the name of a node, as :meth:`plan` shows it, the
            path of a module, or a pattern of paths such as "blocks.*.act", to "identity",
            "structure" or a subclass of :class:`rapkernels.Rule`. The most specific wins. A path
            stands for the operations of that module itself, but for those that move entries.
        strict: whether a model with operations that have no rule is refused. Else such operations
            hand back ``x * J^T (R / y)``, gradient times input over the output, with a warning:
            what they change of the sum is counted as absorbed.
        attention: "constant", where the weights of attention are constants and the values take all
            relevance, or "attnlrp", where half of it goes through softmax to queries and keys
            (Achtibat et al., ICML 2024). Gates of other products stay constants.
        output: which tensor of what the model returns is explained: a position in a tuple or list,
            a key of a dict, a field of a dataclass or named tuple, or a tuple of those, or them
            with dots between ("heads.boxes"), for what lies deeper. None where the model returns
            one tensor, alone or in such a container. What only other outputs need is not run.
        max_memory: the most that :meth:`attribute` and :meth:`attribute_targets` may allocate at
            one time, beyond the model, the input, the targets and what they return: bytes, or a
            string such as "500MB" or "2GiB"; None for no limit. The batch, and where one sample is
            too much its targets, are done in parts, with the same results up to rounding. What a
            part takes is estimated before it is run (:mod:`rapkernels.memory`), without the export.
            Where it cannot be, samples are done one at a time, with a warning.
        precision: "bf16" does the products of relevance and weights of convolutions in bfloat16
            with float32 sums, and those of activations and negative weights that tell negative
            messages apart, where the processor has instructions for that: about twice as fast
            there, with errors of a few thousandths of a map's largest entry. Activations and the
            output stay as they are. Else, and where a layer has no such kernel, float32 stays.

    Raises:
        ArgumentTypeError: ``model`` is not a module, ``rules`` no dict of rules, ``output`` none of
            the above, or ``max_memory`` no size.
        ArgumentError: ``backend``, ``attention``, ``precision``, the name of a rule or a unit of
            ``max_memory`` is not known. A key of ``rules`` or an ``output`` that names nothing, and
            a limit that is too low for one sample, are found at the first call, which says what
            there is.
        BackendError: the native backend is asked for and not built.
    """

    # The attributes that the method's own arguments are kept in.
    _settings: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        backend: Backend = "auto",
        rules: RuleChoices | None = None,
        strict: bool = True,
        attention: Attention = "constant",
        output: Output = None,
        max_memory: int | str | None = None,
        precision: Precision = "fp32",
    ) -> None:
        checks.check_model(model)
        check_backend(backend)
        checks.check_choice("attention", attention, ATTENTION)
        checks.check_choice("precision", precision, PRECISIONS)
        self.model = model
        self.backend = backend
        self.rules = read_choices(rules)
        self.strict = bool(strict)
        self.attention = attention
        self.precision = precision
        self._output = read_output(output)
        self.output = output
        self.max_memory = memory.read_limit(max_memory)
        resolve_backend(backend)

    @override
    def __repr__(self) -> str:
        parts = [type(self.model).__name__]
        parts += [f"{name}={getattr(self, name)!r}" for name in (*self._settings, "backend")]
        if self.rules:
            parts.append(f"rules={shown(self.rules)}")
        if not self.strict:
            parts.append("strict=False")
        if self.max_memory is not None:
            parts.append(f"max_memory={self.max_memory}")
        if self.precision != "fp32":
            parts.append(f"precision={self.precision!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    # What a method is.

    @abstractmethod
    def _method(self) -> Method:
        """Chooses the rules."""

    @abstractmethod
    def _begin(self, walk: Walk, output: Tensor, target: Tensor, findings: Findings) -> Start:
        """The relevance that is sent back for targets ``(T, N)``."""

    def _end(self, graph: Graph) -> str | None:  # noqa: ARG002
        """Name of the value where relevance starts, None for the output."""
        return None

    def _bounds(self, inputs: Inputs, findings: Findings) -> Bounds | None:  # noqa: ARG002
        """Lowest and highest values of a single input."""
        return None

    def _map(self, relevance: Tensor, channels: Channels) -> Tensor:  # noqa: ARG002
        """What the caller gets of the relevance of the input or of a layer."""
        return relevance

    # What the user calls.

    @overload
    def attribute(self, x: Tensor, target: Target = None) -> Tensor: ...

    @overload
    def attribute(
        self, x: Tensor, target: Target = None, *, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def attribute(
        self, x: Tensor, target: Target = None, layers: None = None, *, return_report: Literal[True]
    ) -> tuple[Tensor, Report]: ...

    @overload
    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        *,
        layers: Sequence[str],
        return_report: Literal[True],
    ) -> tuple[Tensor, dict[str, Tensor], Report]: ...

    @overload
    def attribute(
        self,
        x: Several,
        target: Target = None,
        layers: Sequence[str] | None = None,
        return_report: bool = False,
    ) -> Any: ...

    def attribute(
        self,
        x: Tensor | Several,
        target: Target = None,
        layers: Sequence[str] | None = None,
        return_report: bool = False,
    ) -> Maps:
        """Explain one output of each sample.

        Args:
            x: ``(N, ...)``, what the model takes; float64, float32, bfloat16 or float16, finite.
                Or several such tensors of one batch size: a tuple or list, which become positional
                arguments, or a dict, which becomes keyword arguments where the model's forward
                has a parameter for each key and one positional argument otherwise. Integers and
                bools among them, such as token ids and masks, are constants.
            target: which output: None for the predicted class, an int for all samples, or a list,
                tuple or tensor ``(N,)``. Where the output has more than two dimensions: an index
                tuple without the batch dimension, a list of them, or a
                :class:`rapkernels.MaskedTarget`.
            layers: paths of modules (as in ``model.named_modules()``) whose output's relevance is
                wanted too: that of the last value that the module computes.
            return_report: whether to return the conservation report too.

        Returns:
            The relevance of ``x``, in its dtype and on its device, detached; the class says which
            shape and sum it has. For several inputs a tuple, with None in the place of constants,
            or a dict without them; sums are then those over all inputs. With ``layers`` or
            ``return_report`` a tuple of it, a dict from path to relevance, and a
            :class:`~rapkernels.report.Report`, as asked.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot be used; the message says why.
            TrainingModeError: BatchNorm or Dropout modules are in train mode.
            ExportError: ``torch.export`` cannot export the model, or not while a CUDA graph is
                captured.
            BackendError: the native backend is asked for and has no kernels for the device.
            UnsupportedOperationError: the model has operations without a rule.
            NonFiniteOutputError: the model's output is NaN or infinite.
        """
        return self._attribute(x, target, layers, return_report)

    @overload
    def attribute_targets(self, x: Tensor, targets: Targets) -> Tensor: ...

    @overload
    def attribute_targets(
        self, x: Tensor, targets: Targets, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def attribute_targets(
        self, x: Several, targets: Targets, layers: Sequence[str] | None = None
    ) -> Any: ...

    def attribute_targets(
        self, x: Tensor | Several, targets: Targets, layers: Sequence[str] | None = None
    ) -> Maps:
        """Explain T outputs of each sample; what does not depend on the target is done once.

        Args:
            x: as for :meth:`attribute`.
            targets: a list of T classes for all samples, or ``(N, T)`` ints (a tensor, an array or
                nested lists). Where the output has more than two dimensions: a list of T index
                tuples or :class:`rapkernels.MaskedTarget`.
            layers: as for :meth:`attribute`.

        Returns:
            ``(T, N, ...)``: what :meth:`attribute` returns for each target, for each of several
            inputs. With ``layers`` a tuple of it and a dict from path to ``(T, N, ...)``.

        Raises:
            As :meth:`attribute`.
        """
        return self._attribute(x, targets, layers, False, many=True)

    def capture(
        self, x: Tensor | Several, target: Target = None, layers: Sequence[str] | None = None
    ) -> Captured:
        """Capture :meth:`attribute` for a fixed shape in a CUDA graph, which is called instead.

        Where a call's kernels are short, as at batch 1, the host takes longer to launch them than
        the GPU to run them; a replay launches all of them at once.

        Args:
            x: as for :meth:`attribute`, on a CUDA device, with at least one sample.
            target: as for :meth:`attribute`; a tensor can be replaced in each replay.
            layers: as for :meth:`attribute`.

        Returns:
            A function ``(x, target) -> relevance``, see :class:`~rapkernels.captured.Captured`.

        Raises:
            ArgumentError: ``x`` is not on a CUDA device, or holds no sample.
            Others: as :meth:`attribute`.
        """
        return Captured(self.model, partial(self._attribute, layers=layers), x, target)

    def plan(self, x: Tensor | Several) -> Plan:
        """Return what a call does with inputs like ``x``, without running the model.

        The kernels are those of one target for each sample, and of one call for all samples.

        Args:
            x: as for :meth:`attribute`.

        Raises:
            As :meth:`attribute`, but for what needs a run of the model.
        """
        inputs, findings = self._check(x)
        findings.settle()
        with calls.settings(inputs):
            program = self._program(inputs, findings)
            ops = resolve_backend(self.backend, inputs.device)
            like = inputs if inputs.samples else inputs.zeros(1)
            values = program.graph.values(self.model)
            kernels = find_kernels(program, values, ops, like, self._begin)
            return make_plan(program, inputs.samples, kernels)

    # How a call goes.

    def _check(self, x: Tensor | Several) -> tuple[Inputs, Findings]:
        checks.check_eval_mode(self.model)
        checks.check_parameters(self.model)
        inputs = read_inputs(self.model, x)
        findings = Findings(inputs.device)
        check_finite_inputs(inputs, findings)
        return inputs, findings

    def _program(self, inputs: Inputs, findings: Findings) -> Program:
        return self._program_to(inputs, findings, self._end)

    def _program_to(
        self, inputs: Inputs, findings: Findings, end: Callable[[Graph], str | None]
    ) -> Program:
        like = calls.like_for_export(self.model, inputs, self._output, findings)
        method = self._configured()
        return cache_of(self.model).program(self.model, like, method, end, self._output)

    def _classes(self, graph: Graph) -> Classes:
        """The classes of rules of a graph's nodes."""
        return rule_classes(graph, self.attention, self.rules)

    def _configured(self) -> Method:
        """The method with what the caller chose."""
        return replace(
            self._method(),
            chosen=self.rules,
            strict=self.strict,
            attention=self.attention,
            precision=self.precision,
        )

    def _walk(self, program: Program, inputs: Inputs, recorder: Recorder | None = None) -> Walk:
        values = program.graph.values(self.model)
        ops = resolve_backend(self.backend, inputs.device)
        # What waits in a workspace would come on top of what a limit has been told.
        workspace = cache_of(self.model).workspace if self.max_memory is None else None
        return Walk(program, values, ops, recorder, workspace)

    def _attribute(
        self,
        x: Tensor | Several,
        target: Any,
        layers: Sequence[str] | None = None,
        return_report: bool = False,
        many: bool = False,
        begin: BeginOf | None = None,
        first: int = 0,
    ) -> Maps:
        inputs, findings = self._check(x)
        samples, device = inputs.samples, inputs.device
        if findings.capturing and return_report:
            raise ArgumentError(
                "return_report must be False while a CUDA graph is captured, got True: a report is "
                "read on the host, so ask for it in a call outside of the capture"
            )
        checks.check_layers_form(layers)
        bounds = self._bounds(inputs, findings)
        with calls.settings(inputs):
            program = self._program(inputs, findings)
            shape = calls.output_shape(program.graph, samples)
            if many:
                chosen: Tensor | None = resolve_targets(target, shape, device, findings)
            else:
                one = resolve_target(target, shape, device, findings)
                chosen = None if one is None else one[None]
            nodes = calls.nodes_of_layers(program, layers or (), self.model)
            start = begin or (lambda _: self._begin)
            with_layers = layers is not None
            call = Call(
                program, inputs, chosen, bounds, start, nodes, with_layers, many, return_report
            )
            findings.targets = call.targets
            parts = list(parts_of(samples, call.targets, self._at_once(call, findings)))
            whole = Whole(samples, call.targets if many else None)
            returned: list[Any] = []
            reports: list[Callable[[], Report]] = []
            for part in parts:
                findings.first = first + part.samples.start
                found, report = self._explain(call, part, findings)
                returned = found if len(parts) == 1 else whole.put(part, found)
                reports += [] if report is None else [report]
            # The last of the work has been handed out: now the host may wait for it.
            findings.settle()
            if return_report:
                returned.append(Report.joined([report() for report in reports]))
            return returned[0] if len(returned) == 1 else tuple(returned)

    def _at_once(self, call: Call, findings: Findings, held: int = 0) -> tuple[int, int]:
        """How many samples and targets of a call fit ``max_memory`` together.

        Args:
            call: the call.
            findings: its checks.
            held: bytes that the caller holds besides, for each sample and target.
        """
        samples = call.inputs.samples
        if self.max_memory is None or samples == 0:
            return samples, call.targets
        ops = resolve_backend(self.backend, call.inputs.device)
        masked = call.chosen is not None and call.chosen.dtype == torch.bool
        bounded = call.bounds is not None

        def need(samples: int, targets: int) -> int:
            inputs = call.inputs.part(slice(samples))
            program = self._program_for(call, inputs, findings)
            values = program.graph.values(self.model)
            peak = memory.peak_bytes(
                program, values, ops, inputs, targets, self._begin, masked, bounded, call.reported
            )
            return peak + held * samples * targets

        return memory.fitting(need, samples, call.targets, self.max_memory)

    def _samples_at_once(
        self, x: Tensor, targets: int, layers: Sequence[str] | None, copies: int
    ) -> int:
        """How many samples fit ``max_memory``, with copies of the maps of each target."""
        inputs = Inputs.of(self.model, x)
        if self.max_memory is None or inputs.samples == 0:
            return inputs.samples
        findings = Findings(inputs.device)
        with calls.settings(inputs):
            program = self._program(inputs, findings)
            nodes = calls.nodes_of_layers(program, layers or (), self.model)
            chosen = x.new_empty((targets, inputs.samples), dtype=torch.int64)
            begin: BeginOf = lambda _: self._begin  # noqa: E731
            call = Call(program, inputs, chosen, None, begin, nodes, True, True, False)
            graph = program.graph
            entries = sum(
                math.prod(graph.sized(graph.shape_of(name), 1))
                for name in (*graph.explained, *nodes.values())
            )
            return self._at_once(call, findings, copies * entries * x.element_size())[0]

    def _program_for(self, call: Call, inputs: Inputs, findings: Findings) -> Program:
        """The call's program, or where the export fixed the batch size that for a part's."""
        whole = call.inputs.samples
        if call.program.graph.fixed_batch is None or inputs.samples == whole:
            return call.program
        try:
            return self._program(inputs, findings)
        except (ArgumentError, ExportError) as error:
            raise ArgumentError(
                f"max_memory must be enough for {whole} samples of x at once, since the model does "
                f"not take {inputs.samples}, got {self.max_memory} bytes"
            ) from error

    def _explain(
        self, call: Call, part: Part, findings: Findings
    ) -> tuple[list[Any], Callable[[], Report] | None]:
        """What is returned for a part of a call, and what makes its report, if one is wanted."""
        inputs, exposed = call.inputs.part(part.samples), set(call.nodes.values())
        program = self._program_for(call, inputs, findings)
        recorder = Recorder(program.graph, inputs.samples, inputs.device) if call.reported else None
        if inputs.samples == 0:
            explained = calls.empty(program, inputs, call.targets, exposed)
        else:
            walk = self._walk(program, inputs, recorder)
            begin, bounds = call.begin(part.samples), call.bounds_of(part)
            explained = calls.run(
                walk, inputs, call.chosen_of(part), begin, findings, bounds, exposed
            )
        maps, inside = self._maps(program, explained, call.many)
        returned = [inputs.packed(maps)]
        if call.with_layers:
            returned.append({path: inside[name] for path, name in call.nodes.items()})
        if recorder is None:
            return returned, None
        # The sum and not the relevance itself, which the caller need not keep.
        target, score, total = explained.target[0], explained.score[0], explained.total()
        return returned, partial(recorder.report, target, score, total)

    def _maps(
        self, program: Program, explained: Explained, many: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What the caller gets of the explained inputs and of the exposed nodes."""

        def finished(relevance: Tensor, name: str) -> Tensor:
            found = self._map(relevance, program.channels.get(name, Channels()))
            targets = len(explained.target)
            if not many:
                return found
            return found.view(targets, found.shape[0] // targets, *found.shape[1:])

        maps = [finished(relevance, name) for name, relevance in explained.relevance.items()]
        inside = {name: finished(relevance, name) for name, relevance in explained.exposed.items()}
        return maps, inside
