// The parts of the module for NumPy.
#pragma once

#include <pybind11/pybind11.h>

namespace sparsenn {

void bind_runtime(pybind11::module_& m);

}  // namespace sparsenn
