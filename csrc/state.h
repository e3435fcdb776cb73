// The relevance state between two ops: (values, psi, scale), true relevance
// (values - psi [values != 0]) * scale per sample.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "checks.h"

namespace rapkernels {

using State = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // values, psi, scale, absorbed

// float for float32 and narrower storage, double for float64.
at::ScalarType accumulate_type(at::ScalarType storage);

// What the kernels read and write for this tensor: its accumulate type, but on CUDA bfloat16 stays,
// for the tensor cores and half the traffic. float16 does not: S reaches beyond its 65504.
at::ScalarType working_type(const Tensor& t);

// Dense in `format`, in the working type; no copy where it already is. Its strides do not tell the
// format: a dimension of size 1 may have any.
Tensor operand(const Tensor& t, at::MemoryFormat format);

// The same in the accumulate type.
Tensor accumulated(const Tensor& t, at::MemoryFormat format);

Storage storage_of(at::ScalarType type);

// (N,) float64 of the device of x, one value for each sample; without `value`, to be written.
Tensor per_sample(const Tensor& x, double value);
Tensor per_sample(const Tensor& x);

// (N, 3) float64: sum, count and largest magnitude of each sample.
Tensor empty_statistics(const Tensor& x);
Tensor measure(const Tensor& values);

// The largest finite value of a storage type, and values in it, saturated.
double largest_value(at::ScalarType type);
Tensor narrowed(const Tensor& values, at::ScalarType storage);

const double* data_or_null(const OptionalTensor& t);

// Settled relevance: `contribution` (working type, dense) goes to its storage type, rescaled
// where it leaves the safe range. With `total`, the shift that brings each sample's sum to it is
// pending in psi, and what no element can take is absorbed; without, psi is zero and nothing is
// absorbed.
State settle(const Tensor& contribution, const OptionalTensor& statistics,
             const OptionalTensor& total, const OptionalTensor& scale, at::ScalarType storage);

// The same for relevance that is already complete, with what its op absorbed (before scale).
State settle_complete(const Tensor& values, const Tensor& absorbed, const OptionalTensor& scale,
                      at::ScalarType storage);

// One scale for two complete results of one op, in their storage type: (first, second, scale).
std::tuple<Tensor, Tensor, Tensor> settle_pair(const Tensor& first, const Tensor& second,
                                               const OptionalTensor& scale, at::ScalarType storage);

}  // namespace rapkernels
