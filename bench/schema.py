"""The result files: one dataclass per JSON object, read back with every type checked."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

# Of files without a version of their own.
VERSION = 1

T = TypeVar("T")


class SchemaError(ValueError):
    """A result file does not have the shape that :mod:`bench.schema` describes."""


@dataclass(frozen=True)
class Machine:
    """Where a run took place; holds no host name and no path."""

    cpu: str
    physical_cores: int
    logical_cpus: int
    torch_threads: int
    instruction_set: str
    memory_gb: float
    system: str


@dataclass(frozen=True)
class Provenance:
    """What is needed to repeat a run."""

    command: str
    date: str
    commit: str | None
    dirty: bool | None
    machine: Machine
    versions: dict[str, str]


@dataclass(frozen=True)
class Check:
    """One method against the float64 reference, before anything is timed."""

    method: str
    cosine: float
    max_error: float
    total_error: float
    conservation: float


@dataclass(frozen=True)
class Memory:
    """Peak resident memory above the loaded model, in GB (1e9 bytes), in a fresh process."""

    first_call_gb: float
    second_call_gb: float
    how: Literal["high-water mark", "sampled"]


@dataclass(frozen=True)
class MethodResult:
    """One method on one network. Where it does not run, `error` says why and the rest is None.

    `cost` is `seconds` (the median of `samples`) in forward passes; `finite` whether the relevance
    holds neither NaN nor inf; `relevance_over_score` the median over the batch of its total
    divided by the predicted class's logit (of several targets that of the first, that class).
    """

    method: str
    label: str
    error: str | None
    first_call_seconds: float | None
    seconds: float | None
    samples: list[float]
    cost: float | None
    finite: bool | None
    relevance_over_score: float | None
    memory: Memory | None


@dataclass(frozen=True)
class ModelRun:
    """All methods on one network, measured in interleaved rounds of one process.

    `forward_spread` is the unit's interquartile range over the rounds relative to its median: what
    the machine itself did during the run. `checked_samples`: how many, the first ones, were
    compared with the float64 reference.
    """

    network: str
    input_shape: list[int]
    provenance: Provenance
    rounds: int
    checked_samples: int
    forward_seconds: float
    forward_spread: float
    checks: list[Check]
    results: list[MethodResult]


@dataclass(frozen=True)
class ModelsFile:
    """What ``python -m bench.models`` writes: one run for each network and batch."""

    kind: Literal["models"]
    version: int
    runs: list[ModelRun]

    CURRENT = 2


@dataclass(frozen=True)
class Peaks:
    """What the same run reached with a plain copy and a large matrix product."""

    copy_gb_per_second: float
    matmul_gflop_per_second: float


@dataclass(frozen=True)
class OpResult:
    """One op on one shape, native against reference."""

    name: str
    network: str
    op: str
    shape: str
    max_error: float
    native_seconds: float
    reference_seconds: float
    ratio: float
    gb_per_second: float
    share_of_copy: float
    gflop_per_second: float
    share_of_matmul: float


@dataclass(frozen=True)
class OpsFile:
    """What ``python -m bench.ops`` writes."""

    kind: Literal["ops"]
    version: int
    provenance: Provenance
    rounds: int
    peaks: Peaks
    results: list[OpResult]


@dataclass(frozen=True)
class Point:
    """RAP of `count` samples, or of `count` targets.

    `seconds` is the median over the rounds of the call, `forward_seconds` of one forward pass of
    the same batch.
    """

    count: int
    seconds: float
    forward_seconds: float


@dataclass(frozen=True)
class Growth:
    """How the cost of RAP grows on one network: with the batch, or with targets at one batch.

    `batch` is that of all points, and None where it is what grows. `spread`: see ModelRun, the
    median over the points.
    """

    network: str
    grows: Literal["batch", "targets"]
    batch: int | None
    provenance: Provenance
    rounds: int
    spread: float
    checks: list[Check]
    points: list[Point]


@dataclass(frozen=True)
class GrowthFile:
    """What ``python -m bench.growth`` writes."""

    kind: Literal["growth"]
    version: int
    runs: list[Growth]

    CURRENT = 1


ResultsFile = ModelsFile | OpsFile | GrowthFile


def write(document: ResultsFile, path: Path) -> None:
    """Write a result file; NaN and inf are refused."""
    text = json.dumps(dataclasses.asdict(document), indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> ResultsFile:
    """Read a result file. Raises SchemaError with the field, what was needed and what came."""
    kinds = {"models": ModelsFile, "ops": OpsFile, "growth": GrowthFile}
    return cast(ResultsFile, load(path, kinds))


def load(path: Path, classes: dict[str, type[Any]]) -> Any:
    """Read a result file of one of these kinds; raises SchemaError as :func:`read` does."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SchemaError(f"{path.name}: not a JSON file ({error})") from error
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in classes:
        known = " or ".join(map(repr, classes))
        raise SchemaError(f"{path.name}: kind must be {known}, got {kind!r}")
    needed = getattr(classes[kind], "CURRENT", VERSION)
    # Before the fields, of which an older version has others.
    version = data.get("version")
    if version != needed:
        raise SchemaError(f"{path.name}: version must be {needed}, got {version}; measure again")
    return decode(classes[kind], data, path.name)


def decode(expected: type[T], value: object, where: str) -> T:
    """Turn decoded JSON into `expected` (a dataclass or a plain type), checking every type."""
    return cast(T, _decode(expected, value, where))


def _decode(expected: Any, value: Any, where: str) -> Any:
    origin = get_origin(expected)
    arguments = get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _decode_dataclass(cast(type, expected), value, where)
    if origin is Literal:
        return _require(value in arguments, value, where, f"one of {list(arguments)}")
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _decode(inner, value, where)
    if origin is list:
        _require(isinstance(value, list), value, where, "a list")
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        _require(isinstance(value, dict), value, where, "an object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if expected is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(number and math.isfinite(value), value, where, "a finite number")
        return float(value)
    matches = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    return _require(matches, value, where, f"a value of type {expected.__name__}")


def _decode_dataclass(expected: type, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), value, where, "an object")
    hints = get_type_hints(expected)
    if set(value) != set(hints):
        missing, unknown = sorted(set(hints) - set(value)), sorted(set(value) - set(hints))
        raise SchemaError(f"{where}: missing fields {missing}, unknown fields {unknown}")
    return expected(**{k: _decode(hint, value[k], f"{where}.{k}") for k, hint in hints.items()})


def _require(condition: bool, value: Any, where: str, needed: str) -> Any:
    if not condition:
        raise SchemaError(f"{where}: must be {needed}, got {value!r}")
    return value
