"""How much memory a call takes, found without running it, and how much of a batch fits a limit.

The program of a call is run on meta tensors, which have shapes and no entries, while the bytes of
all storages that are alive are counted. What an operation takes inside, which such a run does not
show, is added to what is alive around it: :func:`_workspace`.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from rapkernels import calls
from rapkernels.dry_run import META, DryRun, DryRunError, Watch
from rapkernels.errors import ArgumentError, ArgumentTypeError, UnknownMemoryWarning
from rapkernels.findings import warn
from rapkernels.inputs import Inputs
from rapkernels.layouts import memory_format_of
from rapkernels.program import Program
from rapkernels.report import Recorder
from rapkernels.rules.linear import MANY_ROWS

_UNITS = {
    unit: base ** (power + 1)
    for base, suffix in ((1000, "b"), (1024, "ib"))
    for power, unit in enumerate(f"{letter}{suffix}" for letter in "kmgt")
} | {"b": 1, "": 1}
_FORM = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", re.IGNORECASE)


def read_limit(max_memory: Any) -> int | None:
    """The limit in bytes.

    Args:
        max_memory: an int, a string such as "500MB", "2 GB" or "1.5GiB", or None for no limit.

    Raises:
        ArgumentTypeError: it is none of these.
        ArgumentError: it is not positive, or the string is no number with a known unit.
    """
    if max_memory is None:
        return None
    found = max_memory
    if isinstance(max_memory, str):
        match = _FORM.fullmatch(max_memory)
        if match is None or match[2].lower() not in _UNITS:
            raise ArgumentError(
                'max_memory must be a number of bytes or a string such as "500MB" or "2GiB", got '
                f"{max_memory!r}"
            )
        found = int(float(match[1]) * _UNITS[match[2].lower()])
    if isinstance(found, bool) or not isinstance(found, int):
        raise ArgumentTypeError(
            'max_memory must be an int of bytes, a string such as "2GB" or None, got '
            f"{type(max_memory).__name__}"
        )
    if found <= 0:
        raise ArgumentError(f"max_memory must be positive, got {max_memory!r}")
    return found


def fitting(
    need: Callable[[int, int], int], samples: int, targets: int, limit: int
) -> tuple[int, int]:
    """How many samples, and of one sample how many targets, fit a limit at once.

    Args:
        need: bytes that samples and targets take. What a sample adds never falls with their number,
            so that the steps below do not go past the largest number that fits. Where it raises
            :class:`DryRunError`, one target of one sample is done at a time.
        samples: how many samples there are, at least 1.
        targets: how many targets each has, at least 1.
        limit: bytes.

    Raises:
        ArgumentError: one target of one sample does not fit.

    Warns:
        UnknownMemoryWarning: it is not known what they take.
    """
    try:
        found = need(samples, targets)
    except DryRunError as error:
        warn(
            f"max_memory may not be kept: {error} on tensors without values, so that what a call "
            "takes is not known and one target of one sample is done at a time",
            UnknownMemoryWarning,
        )
        return 1, 1
    while found > limit:
        if samples > 1:
            samples = max(1, min(samples - 1, samples * limit // found))
        elif targets > 1:
            targets = max(1, min(targets - 1, targets * limit // found))
        else:
            raise ArgumentError(
                f"max_memory must be at least {found} bytes, what one sample of x takes, got "
                f"{limit} bytes"
            )
        found = need(samples, targets)
    return samples, targets


def peak_bytes(
    program: Program,
    values: Mapping[str, Any],
    ops: ModuleType,
    inputs: Inputs,
    targets: int,
    begin: calls.Begin,
    masked: bool = False,
    bounded: bool = False,
    reported: bool = False,
) -> int:
    """The most that a call has allocated at one time, beyond its model, inputs and targets.

    Args:
        program: what it runs.
        values: parameters and constants by name.
        ops: the module of relevance operations.
        inputs: what the model takes, of which nothing is read.
        targets: T, the number of targets of each sample.
        begin: makes the relevance that is sent back.
        masked: whether targets are entries of the output, as of a
            :class:`rapkernels.MaskedTarget`.
        bounded: whether bounds of the input are given.
        reported: whether a report is made.

    Raises:
        DryRunError: an operation of the program cannot be run without values.
    """
    layouts = tuple(map(memory_format_of, inputs.tensors))
    key = inputs.samples, layouts, inputs.device, ops, targets, masked, bounded, reported
    with _lock:
        known = _known.setdefault(program, {})
    if key not in known:
        if len(known) >= _CAPACITY:
            known.clear()
        known[key] = _measured(
            program, values, ops, inputs, targets, begin, masked, bounded, reported
        )
    return known[key]


_CAPACITY = 256
# Programs are those of one method and one kind of input.
_known: weakref.WeakKeyDictionary[Program, dict[Any, int]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _measured(
    program: Program,
    values: Mapping[str, Any],
    ops: ModuleType,
    inputs: Inputs,
    targets: int,
    begin: calls.Begin,
    masked: bool,
    bounded: bool,
    reported: bool,
) -> int:
    dry = DryRun(program, values, inputs, targets, masked)
    recorder = Recorder(program.graph, inputs.samples, META) if reported else None
    meter = _Meter(dry.given, inputs.device)
    dry.run(ops, begin, meter, recorder, bounded)
    return meter.peak


class _Meter(Watch):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, while they live.

    Args:
        known: tensors that are not counted.
        device: where the operations would run.

    Attributes:
        peak: the largest number of bytes that were alive at one time.
    """

    def __init__(self, known: list[Tensor], device: torch.device) -> None:
        super().__init__()
        self.peak: int = 0
        self._live = 0
        self._device = device
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._follow(tensor, counted=False)

    @override
    def saw(self, function: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        inside = _workspace(function, args, result, self._device)
        for tensor in _tensors(result):
            self._follow(tensor)
        self.peak = max(self.peak, self._live + inside)

    def _follow(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if counted else 0
        if key in self._seen:
            return
        self._live += size

        def forget(_: Any) -> None:
            self._live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


# Copies of the weights that an operation holds in the type that it computes in: parts of them, and
# for convolutions the library's own layouts of those.
_WEIGHTS = {
    "relprop_conv": 5,
    "relprop_zbox_conv": 5,
    "relprop_equilibrium_conv": 3,
    "relprop_sharing_conv": 3,
    "relprop_zbox_linear": 2,
    "relprop_equilibrium_linear": 1,
}
# Those whose products of many rows may be convolutions: see csrc/matrix_product.cpp.
_WITH_ROWS = {"relprop_linear", "relprop_equilibrium_linear", "relprop_sharing_linear"}
# Of a weight by the library, on the way to its own layout too.
_LAYOUTS = 2
# A convolution whose weights are larger than its activations splits them slice by slice.
_SLICED_WEIGHTS = 3
# Linear layers of many rows and of sums that are not shorter are done by products with |w| where
# inputs have any sign, else as convolutions: see csrc/relprop_linear.cpp.
_SHORT_SUM = 64
# Of everything else two parts, or the three terms of Equilibrium, or what input layers hold until
# infinities are out: messages of both parts, their sums and those in the result's layout.
_PARTS = {
    "relprop_zbox_conv": 5,
    "relprop_zbox_linear": 6,
    "relprop_equilibrium_conv": 3,
    "relprop_equilibrium_linear": 3,
}


def _workspace(function: Any, args: Any, result: Any, device: torch.device) -> int:
    """The most that an operation allocates inside, beside its result."""
    space, _, name = function._schema.name.partition("::")
    given = {
        argument.name: value
        for argument, value in zip(function._schema.arguments, args, strict=False)
    }
    named = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    results = [value for value in _tensors(result) if value.dim() > 1]
    if space == "aten" and name in ("convolution", "convolution_backward"):
        weight = named.pop("weight")
        inside = _LAYOUTS * _bytes(weight)
        if memory_format_of(named["input"]) is torch.contiguous_format:
            inside += sum(map(_bytes, (*named.values(), *results)))
        return inside + _windows(named["input"], weight, results, device)
    if not space.startswith("rapkernels") or not results:
        return 0
    weight = named.pop("weight", results[0].new_empty(0))
    is_half = results[0].element_size() < 4
    factor = _PARTS.get(name, 2)
    if given.get("groups", 1) > 1:
        # Parts of grouped convolutions are not packed, and the library lays out their groups anew.
        factor *= 2
    inside = factor * sum(_bytes(tensor) for tensor in (*named.values(), *results))
    if name.startswith("relprop_equilibrium"):
        # Messages and quotients are there at the same time.
        inside += factor * _bytes(named["relevance"])
    copies = _WEIGHTS.get(name, 0)
    if name in _WITH_ROWS and named["relevance"][..., 0].numel() >= MANY_ROWS:
        copies += _LAYOUTS
        if name == "relprop_linear":
            by_products = not given.get("nonnegative") and weight.shape[1] >= _SHORT_SUM
            copies = 1 + _LAYOUTS if by_products else _WEIGHTS["relprop_conv"]
    if (
        name in ("relprop_conv", "relprop_linear")
        and copies
        and given.get("groups", 1) == 1
        and _is_sliced(named["x"], weight, named["relevance"])
    ):
        copies = min(copies, _SLICED_WEIGHTS)
    inside += (copies + is_half) * _bytes(weight)
    if is_half:
        return 2 * inside
    if name.endswith("_conv"):
        inside += factor * _windows(named["x"], weight, [named["relevance"]], device)
    return inside


def _is_sliced(x: Tensor, weight: Tensor, relevance: Tensor) -> bool:
    """Whether relprop_conv does a few input channels at a time: see csrc/relprop_conv.cpp."""
    outputs = x.shape[0] * relevance[0].numel()
    return weight.shape[1] > 60 and weight.numel() > x.numel() + outputs


def _windows(x: Tensor, weight: Tensor, outputs: list[Tensor], device: torch.device) -> int:
    """Every window of an input, which the CPU's convolutions copy where they have no kernel."""
    if device.type != "cpu" or x.dtype == torch.float32:
        return 0
    positions = max(tensor.numel() // max(1, tensor.shape[1]) for tensor in (x, *outputs))
    return positions * weight[0].numel() * x.element_size()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
