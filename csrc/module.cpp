// The Python module: loading it registers the ops; build_info() tells how it was built.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "cpu/simd.h"

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = pybind11::none();
#endif
#if RAPKERNELS_HAS_CLONES
  info["cpu_clones"] = pybind11::make_tuple("x86-64-v4", "x86-64-v3", "default");
#else
  info["cpu_clones"] = pybind11::make_tuple("default");
#endif
#ifdef RAPKERNELS_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rapkernels; importing it registers torch.ops.rapkernels.";
  m.def("build_info", &build_info, "How the extension was built, as a dict.");
}
