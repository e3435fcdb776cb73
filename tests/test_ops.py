"""The native operations against the reference computed in float64 from the same numbers."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels import reference
from rapkernels.testing import (
    ADAPTIVE,
    CONVS,
    LAYOUTS,
    POOLS,
    SAMPLES,
    Conv,
    Pool,
    Sampler,
    assert_close,
    assert_same_relevance,
    channels_last,
    convert,
    states,
    strided,
)

# Of the largest entry. float64 and float32: rounding of sums of up to some thousand messages,
# magnified by the smallest Z+ or Z- among the outputs; 7e-15 and 3e-6 were seen. bfloat16 and
# float16: rounding to storage, at most 2^-8 and 2^-11 of an entry, and half of that again for the
# shift that follows from the rounded sum.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1.5 * 2**-8,
    torch.float16: 1.5 * 2**-11,
}
# CUDA kernels, also emulated ones, leave the convolution steps of bfloat16 to convolutions in
# bfloat16: each message goes through Z, S, G and C, rounded to 2^-9 of an entry four times, and the
# shift that follows from their sum is as far off again.
BFLOAT16_CONV = 4 * 2**-8
# cuDNN may compute float32 convolutions by Winograd's or Fourier's transform, whose rounding is
# that of the largest entries around an output.
CUDNN_CONV = 1e-4
ON_CUDA = torch.get_default_device().type == "cuda"
CUDA_KERNELS = ON_CUDA or os.environ.get("RAPKERNELS_TEST_BACKEND") == "emulated"
DTYPES = list(TOLERANCE)
# Around the vector width, the samples and rows of a block, and a block of inputs.
LINEAR_SIZES = [1, 15, 16, 17, 31, 33, 63, 65, 511, 513, 1023, 1025, 4097]
# Around the vector width, a run and a task of the element-wise kernels.
FLAT_SIZES = [1, 15, 16, 17, 31, 33, 63, 65, 511, 513, 1023, 1025, 16383, 16385]


# What is left to matrix products and convolutions in bfloat16 there.
BFLOAT16_STEPS = {
    "relprop_conv",
    "relprop_equilibrium_conv",
    "relprop_equilibrium_linear",
    "relprop_sharing_conv",
    "relprop_sharing_linear",
}


def tolerance(name: str, dtype: torch.dtype) -> float:
    if CUDA_KERNELS and name in BFLOAT16_STEPS and dtype == torch.bfloat16:
        return BFLOAT16_CONV
    if ON_CUDA and name.endswith("_conv") and dtype == torch.float32:
        return CUDNN_CONV
    return TOLERANCE[dtype]


def unshifted_where_lost(actual: Any, expected: Any) -> Any:
    """Expected values, without the shift where the actual contribution has been rounded to 0.

    Such an entry takes no part in the shift: its contribution is what must be small.
    """
    values, psi, *rest = expected
    lost = (actual[0] == 0) & (values != 0)
    shift = psi.view(-1, *[1] * (values.dim() - 1))
    return torch.where(lost, values + shift, values), psi, *rest


def agree(native: ModuleType, name: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    actual = getattr(native, name)(*arguments)
    expected = getattr(reference, name)(*convert(arguments, lambda t: t.double()))
    assert all(state.values.dtype == dtype for state in states(name, actual))
    if CUDA_KERNELS and name == "relprop_conv" and dtype == torch.bfloat16:
        expected = unshifted_where_lost(actual, expected)
    assert_same_relevance(name, actual, expected, tolerance(name, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_dtype_sign_and_layout(
    native: ModuleType, name: str, dtype: torch.dtype, signed: bool, layout: str
) -> None:
    arguments = SAMPLES[name](Sampler(dtype, signed=signed))
    agree(native, name, convert(arguments, LAYOUTS[layout]), dtype)


@pytest.mark.parametrize("name", SAMPLES)
def test_strided_tensors_of_one_entry_per_sample(native: ModuleType, name: str) -> None:
    arguments = SAMPLES[name](Sampler())
    agree(native, name, convert(arguments, strided), torch.float64)


def oddly_strided(tensor: Tensor) -> Tensor:
    """Channels-last memory whose dimensions of size 1 have a stride of another format."""
    tensor = channels_last(tensor)
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.as_strided(tensor.shape, [4 if size == 1 else step for size, step in pairs])


def agree_oddly_strided(native: ModuleType, name: str, arguments: tuple[Any, ...]) -> None:
    for base in (arguments, convert(arguments, channels_last)):
        for index, value in enumerate(base):
            if isinstance(value, Tensor) and value.dim() > 2:
                odd = (*base[:index], oddly_strided(value), *base[index + 1 :])
                agree(native, name, odd, torch.float64)


@pytest.mark.parametrize("name", SAMPLES)
def test_any_stride_in_dimensions_of_size_one(native: ModuleType, name: str) -> None:
    agree_oddly_strided(native, name, SAMPLES[name](Sampler(batch=1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_empty_batch(native: ModuleType, name: str, dtype: torch.dtype) -> None:
    agree(native, name, SAMPLES[name](Sampler(dtype, batch=0)), dtype)


@pytest.mark.parametrize("name", SAMPLES)
def test_without_pending_shift_and_scale(native: ModuleType, name: str) -> None:
    arguments = list(SAMPLES[name](Sampler()))
    for index, value in enumerate(arguments):
        # psi, scale and total are the only float64 vectors but for the first step's.
        if isinstance(value, Tensor) and value.dim() == 1 and name != "relprop_first_linear":
            arguments[index] = None
    agree(native, name, tuple(arguments), torch.float64)


def conv_arguments(
    conv: Conv, sampler: Sampler, rule: str, z_given: bool, batch: int = 2
) -> tuple[Any, ...]:
    x, weight = sampler.activation(batch, conv.channels, *conv.size), conv.weight(sampler)
    z = conv.apply(x.double(), weight.double()).to(sampler.dtype)
    geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    incoming = sampler.relevance(*z.shape)
    given = z if z_given else None
    return x, weight, given, incoming, *sampler.pending(), *geometry, rule, not sampler.signed


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_with_any_stride_in_dimensions_of_size_one(native: ModuleType, conv: Conv) -> None:
    arguments = conv_arguments(conv, Sampler(batch=1), "rap_conv", True, batch=1)
    agree_oddly_strided(native, "relprop_conv", arguments)


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("rule", ["rap", "rap_conv"])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_geometry(native: ModuleType, conv: Conv, rule: str, signed: bool) -> None:
    layouts = list(LAYOUTS.values())
    for index, dtype in enumerate(DTYPES):
        for z_given in (False, True):
            layout = layouts[(index + z_given) % len(layouts)]
            sampler = Sampler(dtype, seed=1, signed=signed, batch=2)
            arguments = conv_arguments(conv, sampler, rule, z_given)
            agree(native, "relprop_conv", convert(arguments, layout), dtype)


def test_nonnegative_promise_changes_nothing(native: ModuleType) -> None:
    for conv in CONVS.values():
        arguments = conv_arguments(conv, Sampler(batch=2, signed=False), "rap_conv", False)
        agree(native, "relprop_conv", (*arguments[:-1], False), torch.float64)


@pytest.mark.parametrize("rule", ["rap", "rap_conv"])
def test_conv_beside_empty_regions(native: ModuleType, rule: str) -> None:
    """Sums that are 0 stay 0, also where a transform mixes them with large ones nearby."""
    sampler = Sampler(torch.float32, batch=2, signed=False)
    x, weight = sampler.activation(2, 32, 14, 28), sampler.normal(32, 32, 3, 3)
    x[:, :, :, 14:] = 0
    x[:, :, :5] *= 1000
    weight[8:16].abs_()
    state = sampler.relevance(2, 32, 14, 28), *sampler.pending()
    for layout in (LAYOUTS["contiguous"], channels_last):
        operands = convert((x, weight, None, *state), layout)
        geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
        agree(native, "relprop_conv", (*operands, *geometry, rule, True), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_zbox_conv_geometry(native: ModuleType, conv: Conv, dtype: torch.dtype) -> None:
    for layout in LAYOUTS.values():
        sampler = Sampler(dtype, batch=2)
        x, weight = sampler.normal(2, conv.channels, *conv.size), conv.weight(sampler)
        state = sampler.relevance(*conv.apply(x, weight).shape), *sampler.pending()
        geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        dims = tuple(range(2, x.dim()))
        bounds = x.amin(dims, keepdim=True), x.amax()
        arguments = x, weight, *bounds, *state, *geometry
        agree(native, "relprop_zbox_conv", convert(arguments, layout), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", LINEAR_SIZES)
def test_linear_sizes(native: ModuleType, size: int, dtype: torch.dtype) -> None:
    for rows, other in [(1, 65), (3, 17), (4, 1), (5, 31), (16, 33), (17, 16), (33, 3)]:
        for shape, rule in [((other, size), "rap"), ((size, other), "rap_conv")]:
            sampler = Sampler(dtype, seed=size, signed=rows % 2 == 1, batch=rows)
            x, weight = sampler.activation(rows, shape[1]), sampler.normal(*shape)
            state = sampler.relevance(rows, shape[0]), *sampler.pending()
            agree(native, "relprop_linear", (x, weight, *state, rule), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", FLAT_SIZES)
def test_flat_sizes(native: ModuleType, size: int, dtype: torch.dtype) -> None:
    sampler = Sampler(dtype, seed=size, batch=2)
    psi, scale = sampler.pending()
    a, b = sampler.activation(2, size), sampler.activation(2, size)
    incoming = sampler.relevance(2, size)
    agree(native, "gate", (a, b, psi, scale), dtype)
    agree(native, "relprop_add", (a, b, incoming, psi, scale, "absolute"), dtype)
    agree(native, "merge", (a, psi, scale, incoming, -psi, None), dtype)
    agree(native, "apply_shift", (incoming, psi, scale), dtype)
    absolute = b.abs() + sampler.normal(2, size).abs()
    for rule in ("rap", "rap_conv"):
        agree(native, "split_quotient", (b, absolute, incoming, psi, rule), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 63, 64, 65])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_pool_geometry(native: ModuleType, pool: Pool, channels: int, dtype: torch.dtype) -> None:
    for layout in LAYOUTS.values():
        sampler = Sampler(dtype, seed=channels, batch=2)
        x = sampler.activation(2, channels, *pool.size)
        geometry = [list(pool.kernel), list(pool.stride), list(pool.padding)]
        state = sampler.relevance(2, channels, *pool.output_size()), *sampler.pending()
        arguments = (x, *state, *geometry, list(pool.dilation), pool.ceil_mode)
        agree(native, "relprop_max_pool", convert(arguments, layout), dtype)
        if set(pool.dilation) == {1}:
            arguments = (x, *state, *geometry, pool.ceil_mode, "absolute")
            agree(native, "relprop_avg_pool", convert(arguments, layout), dtype)


def test_adaptive_windows_beyond_32_bits(native: ModuleType) -> None:
    """Inputs times outputs of one dimension pass 2^31: windows must be worked out in 64 bits."""
    sampler = Sampler(batch=1)
    x, incoming = sampler.activation(1, 1, 50000), sampler.relevance(1, 1, 46000)
    agree(native, "relprop_adaptive_max_pool", (x, incoming, None, None), torch.float64)
    values, _, _, absorbed = native.relprop_adaptive_avg_pool(x, incoming)
    # Sums of 46000 terms of a mean of 0.2, in another order.
    assert_close(values.sum() + absorbed[0], incoming.sum(), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("size", "output"), ADAPTIVE)
def test_adaptive_pool_geometry(
    native: ModuleType, size: tuple[int, ...], output: tuple[int, ...], dtype: torch.dtype
) -> None:
    for channels in (1, 65):
        for layout in LAYOUTS.values():
            sampler = Sampler(dtype, seed=channels, batch=2)
            x = sampler.activation(2, channels, *size)
            state = sampler.relevance(2, channels, *output), *sampler.pending()
            agree(native, "relprop_adaptive_max_pool", convert((x, *state), layout), dtype)
            arguments = convert((x, *state, "absolute"), layout)
            agree(native, "relprop_adaptive_avg_pool", arguments, dtype)


# Sums that may nearly cancel are kept away from 0: shares by ratio are unbounded there.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ratio_rules(native: ModuleType, dtype: torch.dtype) -> None:
    sampler = Sampler(dtype, batch=2)
    x = sampler.normal(2, 3, 7, 6) + 4
    state = sampler.relevance(2, 3, 7, 6), *sampler.pending()
    agree(native, "relprop_add", (x, sampler.normal(2, 3, 7, 6), *state, "ratio"), dtype)
    state = sampler.relevance(2, 3, 3, 4), *sampler.pending()
    agree(native, "relprop_adaptive_avg_pool", (x, *state, "ratio"), dtype)
    geometry = [2, 2], [2, 2], [0, 1], False
    state = sampler.relevance(2, 3, 3, 4), *sampler.pending()
    agree(native, "relprop_avg_pool", (x, *state, *geometry, "ratio"), dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_first_step_of_the_author(
    native: ModuleType, dtype: torch.dtype, signed: bool, bias: bool
) -> None:
    x, weight, given, target, score, _ = SAMPLES["relprop_first_linear"](
        Sampler(dtype, signed=signed)
    )
    arguments = x, weight, given if bias else None, target, score, "author"
    agree(native, "relprop_first_linear", arguments, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_odd_sizes(native: ModuleType, dtype: torch.dtype) -> None:
    sampler = Sampler(dtype, batch=1)
    shape = 1, 67, 127, 129  # 1.1 million elements
    psi, scale = torch.tensor([0.25]).double(), torch.tensor([2.0]).double()
    x, incoming = sampler.activation(*shape), sampler.relevance(*shape)
    agree(native, "relprop_add", (x, incoming, incoming, psi, scale, "absolute"), dtype)
    agree(native, "gate", (x, incoming, psi, scale), dtype)
    if dtype != torch.float32:
        return
    geometry = [2, 3], [2, 2], [0, 1], False
    pooled = sampler.relevance(1, 67, 63, 65)
    agree(native, "relprop_avg_pool", (x, pooled, psi, scale, *geometry, "absolute"), dtype)
    x, weight = sampler.activation(1, 1031), sampler.normal(1021, 1031)
    state = sampler.relevance(1, 1021), psi, scale
    agree(native, "relprop_linear", (x, weight, *state, "rap"), dtype)
    x, weight = sampler.activation(1, 11, 317, 311), sampler.normal(5, 11, 3, 3)
    state = sampler.relevance(1, 5, 317, 311), psi, scale
    geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
    agree(native, "relprop_conv", (x, weight, None, *state, *geometry, "rap_conv", False), dtype)


def test_entries_without_relevance_stay_without(native: ModuleType) -> None:
    values = torch.tensor([[0.0, -0.0, 2.0]])
    shifted = native.apply_shift(values, torch.tensor([0.5]).double(), None)
    assert shifted.tolist() == [[0.0, 0.0, 1.5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_shares_keep_their_precision(native: ModuleType, dtype: torch.dtype) -> None:
    sampler = Sampler(dtype, batch=2)
    x, incoming = sampler.normal(2, 4, 6, 6), sampler.relevance(2, 4, 6, 6) * 2**-10
    agree(native, "relprop_add", (x, x * 2**-8, incoming, None, None, "absolute"), dtype)
    agree(native, "merge", (incoming, None, None, incoming * 2**-4, None, None), dtype)
    pooled = sampler.relevance(2, 4, 3, 3) * 2**-14
    for name in ("relprop_adaptive_avg_pool", "relprop_avg_pool"):
        window = () if "adaptive" in name else ([2, 2], [2, 2], [0, 0], False)
        agree(native, name, (x, pooled, None, None, *window, "absolute"), dtype)


def test_inputs_are_left_as_they_were(native: ModuleType) -> None:
    for name, sample in SAMPLES.items():
        arguments = sample(Sampler(torch.float32))
        before = convert(arguments, lambda t: t.clone())
        getattr(native, name)(*arguments)
        for value, kept in zip(arguments, before, strict=True):
            assert not isinstance(value, Tensor) or torch.equal(value, kept), name


def test_results_do_not_share_memory_with_inputs(native: ModuleType) -> None:
    for name, sample in SAMPLES.items():
        arguments = sample(Sampler(torch.float32))
        memory = {value.data_ptr() for value in arguments if isinstance(value, Tensor)}
        result = getattr(native, name)(*arguments)
        results = result if isinstance(result, tuple) else (result,)
        assert not memory & {value.data_ptr() for value in results}, name
        assert len({value.data_ptr() for value in results}) == len(results), name


@pytest.mark.built_extension
def test_gradients_are_refused_with_a_way_out(native: ModuleType) -> None:
    for name, sample in SAMPLES.items():
        arguments = list(sample(Sampler()))
        arguments[0] = arguments[0].clone().requires_grad_()
        result = getattr(native, name)(*arguments)
        values = result[0] if isinstance(result, tuple) else result
        with pytest.raises(RuntimeError, match=rf"rapkernels\.reference\.{name}\b"):
            values.sum().backward()


def test_defaults_are_those_of_the_reference(native: ModuleType) -> None:
    sampler = Sampler(signed=False)
    x, weight = sampler.activation(3, 4, 6, 6), sampler.normal(5, 4, 3, 3)
    incoming = sampler.relevance(3, 5, 4, 4)
    pooled = sampler.relevance(3, 4, 3, 3)
    for name, arguments in {
        "relprop_conv": (x, weight, None, incoming),
        "relprop_zbox_conv": (x, weight, x.amin(), x.amax(), incoming),
        "relprop_max_pool": (x, pooled, None, None, 2),
        "relprop_avg_pool": (x, pooled, None, None, 2),
        "relprop_adaptive_avg_pool": (x, pooled),
        "relprop_adaptive_max_pool": (x, pooled),
        "relprop_linear": (x, sampler.normal(5, 6), sampler.relevance(3, 4, 6, 5)),
        "relprop_add": (x, x, x),
        "apply_shift": (x,),
        "gate": (x, x),
        "split_quotient": (x, x, x),
    }.items():
        agree(native, name, arguments, torch.float64)


def test_docstrings_are_those_of_the_reference(native: ModuleType) -> None:
    for name in native.__all__:
        documented = getattr(native, name).__doc__
        assert documented
        assert documented.split() == getattr(reference, name).__doc__.split()
