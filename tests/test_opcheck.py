"""Schema, fake kernel and autograd registration of every operation, and torch.compile."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
import torch
from torch import Tensor

from rapkernels import reference
from rapkernels.relevance import Relevance
from rapkernels.testing import (
    LAYOUTS,
    SAMPLES,
    TARGETED,
    Sampler,
    assert_close,
    convert,
    with_targets,
)

pytestmark = pytest.mark.built_extension


def registered() -> set[str]:
    """The library's functions, asked of the dispatcher so that none is forgotten."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("rapkernels::") for name in names if name.startswith("rapkernels::")}


def kernel_functions() -> set[str]:
    """Those that only say what another one would do."""
    return {name for name in registered() if name.endswith("_kernel")}


def test_every_registered_operation_is_public_and_sampled(native: ModuleType) -> None:
    assert (
        registered() - kernel_functions()
        == set(native.__all__)
        == set(SAMPLES)
        == set(reference.__all__)
    )


def test_kernels_are_asked_for_with_the_arguments_of_the_operation(native: ModuleType) -> None:
    assert kernel_functions() == {"relprop_conv_kernel", "relprop_linear_kernel"}
    for name in kernel_functions():
        schemas = (
            getattr(native._registered, n).default._schema
            for n in (name, name.removesuffix("_kernel"))
        )
        ours, theirs = (
            [(a.name, str(a.type), a.default_value) for a in schema.arguments] for schema in schemas
        )
        assert ours == theirs


@pytest.mark.parametrize("name", SAMPLES)
def test_signature_is_that_of_the_reference_and_the_schema(native: ModuleType, name: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, name)) for m in (native, reference))
    assert ours == theirs
    schema = getattr(torch.ops.rapkernels, name).default._schema
    assert [argument.name for argument in schema.arguments] == list(ours.parameters)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(native: ModuleType, name: str, layout: str) -> None:
    operation = getattr(torch.ops.rapkernels, name).default
    assert native
    dtype = torch.bfloat16 if layout == "contiguous" else torch.float32
    torch.library.opcheck(operation, convert(SAMPLES[name](Sampler(dtype)), LAYOUTS[layout]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TARGETED)
def test_opcheck_of_many_targets(native: ModuleType, name: str, layout: str) -> None:
    assert native
    for dtype in (torch.float32, torch.float16):
        arguments = with_targets(name, [SAMPLES[name](Sampler(dtype))] * 3)
        operation = getattr(torch.ops.rapkernels, name).default
        torch.library.opcheck(operation, convert(arguments, LAYOUTS[layout]))


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_of_an_empty_batch(native: ModuleType, name: str) -> None:
    assert native
    operation = getattr(torch.ops.rapkernels, name).default
    torch.library.opcheck(operation, SAMPLES[name](Sampler(torch.float32, batch=0)))


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_with_gradients_asked_for(native: ModuleType, name: str) -> None:
    assert native
    arguments = list(SAMPLES[name](Sampler(torch.float32)))
    arguments[0] = arguments[0].clone().requires_grad_()
    torch.library.opcheck(
        getattr(torch.ops.rapkernels, name).default,
        tuple(arguments),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_meta_tensors_have_the_right_shapes(native: ModuleType, name: str) -> None:
    arguments = SAMPLES[name](Sampler(torch.float16))
    real = getattr(native, name)(*arguments)
    meta = getattr(native, name)(
        *(value.to("meta") if isinstance(value, Tensor) else value for value in arguments)
    )
    pairs = zip(real, meta, strict=True) if isinstance(real, tuple) else [(real, meta)]
    for ours, theirs in pairs:
        assert theirs.is_meta
        assert (ours.shape, ours.dtype, ours.stride()) == (
            theirs.shape,
            theirs.dtype,
            theirs.stride(),
        )


def test_compiled_without_a_break(native: ModuleType) -> None:
    def explain(operations: ModuleType, x: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        total = hidden + hidden.flip(1)
        a, b, scale, _ = operations.relprop_add(hidden, hidden.flip(1), total)
        values, scale = operations.merge(a, None, scale, b.flip(1), None, scale)
        state = Relevance(*operations.relprop_conv(x, weight, None, values, None, scale)[:3])
        return operations.apply_shift(*state) * 2

    sampler = Sampler(torch.float32, signed=False, batch=2)
    arguments = sampler.normal(2, 3, 8, 8), sampler.normal(2, 6, 6, 6), sampler.normal(6, 3, 3, 3)
    compiled = torch.compile(explain, fullgraph=True)(native, *arguments)
    assert torch.equal(compiled, explain(native, *arguments))
    assert_close(compiled, explain(reference, *arguments), 1e-4)
