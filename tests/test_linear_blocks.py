"""Linear layers large enough that every loop of their kernels turns more than once."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from rapkernels import reference
from rapkernels.testing import Sampler, assert_same_relevance, convert

# Rounding of sums of up to 4099 messages, magnified by the smallest Z+ or Z- among the outputs;
# 1.7e-15 and 8.2e-7 were seen. bfloat16 and float16: storage, and half of that for the shift.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1.5 * 2**-8,
    torch.float16: 1.5 * 2**-11,
}


@pytest.mark.parametrize("nonnegative", [True, False], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_many_stages_and_pieces(native: ModuleType, dtype: torch.dtype, nonnegative: bool) -> None:
    shape = 517, 4099
    for rows in (1, 3):
        sampler = Sampler(dtype, signed=not nonnegative, batch=rows)
        x, weight = sampler.activation(rows, shape[1]), sampler.normal(*shape)
        state = sampler.relevance(rows, shape[0]), *sampler.pending()
        arguments = x, weight, *state, "rap", nonnegative
        exact = convert(arguments, lambda t: t.double())
        assert_same_relevance(
            "relprop_linear",
            native.relprop_linear(*arguments),
            reference.relprop_linear(*exact),
            TOLERANCE[dtype],
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_promise_of_nonnegative_inputs_changes_rounding_only(
    native: ModuleType, dtype: torch.dtype
) -> None:
    for rows in (2, 6, 40):
        sampler = Sampler(dtype, signed=False, batch=rows)
        x, weight = sampler.activation(rows, 300), sampler.normal(70, 300)
        state = sampler.relevance(rows, 70), *sampler.pending()
        assert_same_relevance(
            "relprop_linear",
            native.relprop_linear(x, weight, *state, "rap", True),
            native.relprop_linear(x, weight, *state, "rap", False),
            TOLERANCE[dtype],
        )
