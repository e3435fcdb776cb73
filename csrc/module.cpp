// The Python module: loading it registers the ops; build_info() tells how it was built.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#ifdef RAPKERNELS_WITH_CUDA
#include <cuda_runtime_api.h>

#include <sstream>
#include <string>
#endif

#include "cpu/simd.h"
#include "matrix_product.h"
#include "workspace.h"

namespace {

#ifdef RAPKERNELS_WITH_CUDA
std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

pybind11::tuple cuda_architectures() {
  pybind11::list names;
  std::istringstream listed(RAPKERNELS_CUDA_ARCHS);
  for (std::string name; std::getline(listed, name, ';');) names.append(name);
  return names;
}
#endif

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
  info["cuda_version"] = cuda_version();
  info["cuda_architectures"] = cuda_architectures();
#else
  info["cuda"] = false;
  info["cuda_version"] = pybind11::none();
  info["cuda_architectures"] = pybind11::tuple();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rapkernels; importing it registers torch.ops.rapkernels.";
  m.def("build_info", &build_info, "How the extension was built, as a dict.");
  pybind11::class_<rapkernels::Workspace>(m, "Workspace", "See csrc/workspace.h.")
      .def(pybind11::init<>())
      .def("open", &rapkernels::Workspace::open)
      .def("close", &rapkernels::Workspace::close)
      .def_property_readonly("unused_bytes", &rapkernels::Workspace::unused_bytes);
  m.def("workspace_empty_like", &rapkernels::workspace_empty_like, pybind11::arg("tensor"),
        pybind11::arg("format") = pybind11::none(), "See csrc/workspace.h.");
  m.def("matrix_product", &rapkernels::matrix_product, pybind11::arg("x"), pybind11::arg("weight"),
        pybind11::arg("bias") = pybind11::none(), "See csrc/matrix_product.h.");
}
