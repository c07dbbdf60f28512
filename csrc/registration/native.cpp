// A module for NumPy that links no torch: the build's stamp, and the torch-free core.
#include "registration/native.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "launchers.h"
#include "registration/build_info.h"  // written by setup.py

namespace py = pybind11;

namespace sparsenn {
namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"torch", SPARSENN_BUILD_TORCH},    {"cuda", SPARSENN_BUILD_CUDA}, {"cuda_reason", SPARSENN_BUILD_CUDA_REASON},
      {"commit", SPARSENN_BUILD_COMMIT},  {"time", SPARSENN_BUILD_TIME}, {"compiler", __VERSION__},
      {"schemas", SPARSENN_BUILD_SCHEMAS}};
}

// Row-major arrays of one shape and of type T, as the kernels see them.
template <class T>
py::array hadamard_of(const std::vector<py::array>& factors, DType dtype) {
  const py::array& first = factors[0];
  const std::vector<int64_t> sizes(first.shape(), first.shape() + first.ndim());
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  const auto view = [&](void* data) {
    return TensorView{data, dtype, first.size(), first.ndim(), sizes.data(), strides.data()};
  };
  std::vector<Numbers<T>> rows;
  std::vector<TensorView> views;
  for (const py::array& factor : factors) {
    rows.emplace_back(factor);
    views.push_back(view(const_cast<T*>(rows.back().data())));
  }
  py::array_t<T> out(sizes);
  if (first.size()) hadamard<Cpu>(views.data(), views.size(), view(out.mutable_data()), nullptr);
  return out;
}

py::array hadamard_product(const std::vector<py::array>& factors) {
  if (factors.empty()) throw py::value_error("hadamard_product: factors is empty; it takes at least one array");
  for (const py::array& factor : factors) {
    if (!factor.dtype().is(factors[0].dtype()))
      throw py::value_error("hadamard_product: the factors have different dtypes");
    if (!std::equal(factor.shape(), factor.shape() + factor.ndim(), factors[0].shape(),
                    factors[0].shape() + factors[0].ndim()))
      throw py::value_error("hadamard_product: the factors have different shapes (nothing broadcasts)");
  }
  if (factors[0].dtype().is(py::dtype::of<float>())) return hadamard_of<float>(factors, DType::float32);
  if (factors[0].dtype().is(py::dtype::of<double>())) return hadamard_of<double>(factors, DType::float64);
  throw py::value_error("hadamard_product: it takes float32 or float64 arrays");
}

}  // namespace
}  // namespace sparsenn

PYBIND11_MODULE(_native, m) {
  m.doc() = "sparsenn's core without torch";
  m.def("build_info", &sparsenn::build_info, "What the package was built with.");
  m.def("hadamard_product", &sparsenn::hadamard_product, py::arg("factors"),
        "Elementwise product of NumPy arrays of one shape and dtype (float32 or float64).");
  sparsenn::bind_runtime(m);
}
