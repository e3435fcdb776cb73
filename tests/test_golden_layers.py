"""Every golden layer file, by both backends and in float64 and float32.

The default variant equals the published code on inputs without negative entries; the author variant
equals it on every file, quirks included.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from rapkernels import author, reference
from rapkernels.relevance import Relevance
from rapkernels.testing import assert_close

GOLDEN = Path(__file__).parent / "golden"
LAYERS = sorted(path.stem for path in GOLDEN.glob("*.npz") if "_net_" not in path.stem)
# Where the default variant departs from the published code by design.
AUTHOR_ONLY = {
    "rap_add",
    "rap_batchnorm",
    "rap_conv3x3_signed",
    "rap_linear_signed",
    "rap_first_linear_signed",
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

Golden = dict[str, Tensor]
Expected = dict[str, Relevance]


def load(name: str, dtype: torch.dtype) -> Golden:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        tensors = {key: torch.as_tensor(np.asarray(archive[key])) for key in archive.files}
    return {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tensors.items()
    }


def _signed(
    operations: ModuleType, step: Callable[[Tensor], author.Relprop], x: Tensor, variant: str
) -> Relevance:
    result = (
        author.relprop_signed_author(step, x, operations.merge) if variant == "author" else step(x)
    )
    return Relevance(*result[:3])


def _linear(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    def step(x: Tensor) -> author.Relprop:
        return operations.relprop_linear(x, golden["weight"], golden["R_out"])

    return {"R_in": _signed(operations, step, golden["x"], variant)}


def _conv(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    geometry = {"stride": int(golden["stride"]), "padding": int(golden["padding"])}

    def step(x: Tensor) -> author.Relprop:
        return operations.relprop_conv(
            x,
            golden["weight"],
            None,
            golden["R_out"],
            nonnegative=bool((x >= 0).all()),
            **geometry,
        )

    return {"R_in": _signed(operations, step, golden["x"], variant)}


def _first_linear(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    target = golden["target"]
    score = golden["y"].gather(1, target[:, None])[:, 0]
    rule = "author" if variant == "author" else "absolute"
    result = operations.relprop_first_linear(
        golden["x"], golden["weight"], golden["bias"], target, score, rule
    )
    return {"R_in": Relevance(*result[:3])}


def _max_pool(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del variant
    window = (int(golden[key]) for key in ("kernel", "stride", "padding"))
    result = operations.relprop_max_pool(golden["x"], golden["R_out"], None, None, *window)
    return {"R_in": Relevance(*result[:3])}


def _avg_pool(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    window = (int(golden[key]) for key in ("kernel", "stride", "padding"))
    rule = "ratio" if variant == "author" else "absolute"
    result = operations.relprop_avg_pool(
        golden["x"], golden["R_out"], None, None, *window, rule=rule
    )
    return {"R_in": Relevance(*result[:3])}


def _equilibrium_max_pool(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del variant
    window = (int(golden[key]) for key in ("kernel", "stride", "padding"))
    result = operations.relprop_max_pool(
        golden["x"].clamp(min=0), golden["R_out"], None, None, *window, absorb_zeros=False
    )
    return {"R_in": Relevance(*result[:3])}


def _equilibrium_avg_pool(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del variant
    window = (int(golden[key]) for key in ("kernel", "stride", "padding"))
    result = operations.relprop_avg_pool(
        golden["x"], golden["R_out"], None, None, *window, rule="positive"
    )
    return {"R_in": Relevance(*result[:3])}


def _adaptive_avg_pool(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    rule = "ratio" if variant == "author" else "absolute"
    result = operations.relprop_adaptive_avg_pool(golden["x"], golden["R_out"], rule=rule)
    return {"R_in": Relevance(*result[:3])}


def _add(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del variant
    values_a, values_b, scale, _ = operations.relprop_add(
        golden["a"], golden["b"], golden["R_out"], rule="ratio"
    )
    return {"R_a": Relevance(values_a, None, scale), "R_b": Relevance(values_b, None, scale)}


def _batchnorm(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del operations, variant
    state = Relevance(golden["R_out"])
    result = author.relprop_batchnorm_author(golden["x"], golden["weight"], state)
    return {"R_in": Relevance(*result[:3])}


def _zbox_conv(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del variant
    x = golden["x"]
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    geometry = {"stride": int(golden["stride"]), "padding": int(golden["padding"])}
    result = operations.relprop_zbox_conv(
        x, golden["weight"], low, high, golden["R_out"], **geometry
    )
    return {"R_in": Relevance(*result[:3])}


def _equilibrium_conv(operations: ModuleType, golden: Golden, variant: str) -> Expected:
    del variant
    geometry = {"stride": int(golden["stride"]), "padding": int(golden["padding"])}
    result = operations.relprop_equilibrium_conv(
        golden["x"],
        golden["weight"],
        golden["R_out"],
        **geometry,
        ratio=float(golden["ratio"]),
    )
    return {"R_in": Relevance(*result[:3])}


# By the beginning of the file's name, the longest first.
STEPS: dict[str, Callable[[ModuleType, Golden, str], Expected]] = {
    "rap_adaptive_avgpool": _adaptive_avg_pool,
    "rap_first_linear": _first_linear,
    "rap_batchnorm": _batchnorm,
    "ae_avgpool": _equilibrium_avg_pool,
    "ae_maxpool": _equilibrium_max_pool,
    "rap_avgpool": _avg_pool,
    "rap_maxpool": _max_pool,
    "rap_linear": _linear,
    "zbox_conv": _zbox_conv,
    "rap_conv": _conv,
    "ae_conv": _equilibrium_conv,
    "rap_add": _add,
}
CASES = [
    (name, variant)
    for name in LAYERS
    for variant in ("default", "author")
    if variant == "author" or name not in AUTHOR_ONLY
]


def step_of(name: str) -> Callable[[ModuleType, Golden, str], Expected]:
    return next(step for prefix, step in STEPS.items() if name.startswith(prefix))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_layer_equals_the_published_code(
    operations: ModuleType, name: str, variant: str, dtype: torch.dtype
) -> None:
    golden = load(name, dtype)
    for key, state in step_of(name)(operations, golden, variant).items():
        assert_close(state.to_float64(), golden[key], TOLERANCE[dtype], f"{name} {key}")


def test_there_is_a_golden_file_for_every_kind_of_layer() -> None:
    assert {next(p for p in STEPS if name.startswith(p)) for name in LAYERS} == set(STEPS)


def test_author_batchnorm_drops_and_reports_relevance_of_zero_inputs() -> None:
    x = torch.tensor([[[1.0, 0.0], [2.0, 3.0]]])
    state = Relevance(
        torch.tensor([[[3.0, 4.0], [5.0, 0.0]]]),
        torch.tensor([1.0], dtype=torch.float64),
        torch.tensor([2.0], dtype=torch.float64),
    )
    values, psi, scale, absorbed = author.relprop_batchnorm_author(
        x, torch.tensor([2.0, 0.0]), state
    )
    assert Relevance(values, psi, scale).to_float64().tolist() == [[[4.0, 0.0], [0.0, 0.0]]]
    assert absorbed.tolist() == [14.0]


def test_author_linear_doubles_the_total_of_signed_inputs(operations: ModuleType) -> None:
    golden = load("rap_linear_signed", torch.float64)
    state = _linear(operations, golden, "author")["R_in"]
    assert_close(state.total(), 2 * golden["R_out"].sum(1), 1e-9)


def test_author_step_without_any_message_absorbs_once() -> None:
    x, weight, relevance = torch.zeros(2, 4), torch.ones(3, 4), torch.ones(2, 3)
    x[1, 0] = -1

    def step(part: Tensor) -> author.Relprop:
        return reference.relprop_linear(part, weight, relevance)

    assert author.relprop_signed_author(step, x)[3].tolist() == [3.0, 0.0]
