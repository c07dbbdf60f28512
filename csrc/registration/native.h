// The parts of the module for NumPy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace sparsenn {

// Row-major and aligned, as the kernels read them; copied where an array is not.
constexpr int kReadable = pybind11::array::c_style | int{pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_};
template <class T>
using Numbers = pybind11::array_t<T, kReadable | int{pybind11::array::forcecast}>;

void bind_runtime(pybind11::module_& m);

}  // namespace sparsenn
