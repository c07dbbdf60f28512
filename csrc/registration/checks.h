// What the operators ask of their arguments, written once for both devices, and the views that launchers take. Stable
// ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "launchers.h"
#include "registration/tensor_list.h"

namespace sparsenn::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(int32_t of_torch) {
  switch (torch::stable::detail::to<ScalarType>(torch::stable::detail::from(of_torch))) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, "sparsenn: an argument is neither float64, float32, bfloat16 nor float16");
  }
}

// Fewer calls into torch than its class of tensors makes: a step has thousands of them to look at.
inline TensorView view_of(AtenTensorHandle tensor) {
  TensorView view;
  int32_t dtype;
  int64_t *sizes, *strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &view.data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &view.dim));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  view.dtype = dtype_of(dtype);
  view.numel = 1, view.sizes = sizes, view.strides = strides;
  for (int64_t i = 0; i < view.dim; ++i) view.numel *= sizes[i];
  return view;
}

inline TensorView view_of(const Tensor& tensor) { return view_of(tensor.get()); }

template <class Tensors>
std::vector<TensorView> views_of(const Tensors& tensors) {
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (const auto& tensor : tensors) views.push_back(view_of(tensor));
  return views;
}

// What an error's sentence calls an argument: "sparsenn::prox_sgd_: grads[1]". Without an index it is no list.
struct Argument {
  const char *op, *name;
  int64_t index = -1;

  std::string text() const {
    return std::string("sparsenn::") + op + ": " + name + (index < 0 ? "" : "[" + std::to_string(index) + "]");
  }
};

inline const char* name_of(DType dtype) {
  return dtype == DType::float64    ? "float64"
         : dtype == DType::float32  ? "float32"
         : dtype == DType::bfloat16 ? "bfloat16"
                                    : "float16";
}

// "(3, 7)", with * for a size that may be any.
inline std::string shape_of(const int64_t* sizes, int64_t dim) {
  std::string text = "(";
  for (int64_t i = 0; i < dim; ++i) text += (i ? ", " : "") + (sizes[i] < 0 ? "*" : std::to_string(sizes[i]));
  return text + (dim == 1 ? ",)" : ")");
}

inline std::string shape_of(const TensorView& view) { return shape_of(view.sizes, view.dim); }

inline std::string described(const TensorView& view) { return name_of(view.dtype) + (" " + shape_of(view)); }

// The shape of `model`, which the sentence calls `beside`, and `dtype`: its own or that of what is accumulated.
inline void check_like(const TensorView& view, const TensorView& model, DType dtype, const Argument& argument,
                       const char* beside) {
  const bool fits = view.dtype == dtype && view.dim == model.dim &&
                    std::memcmp(view.sizes, model.sizes, sizeof(int64_t) * model.dim) == 0;
  STD_TORCH_CHECK(fits, argument.text(), " is ", described(view), "; ", beside, " is ", described(model),
                  dtype == model.dtype ? std::string(", and they must agree")
                                       : std::string(", beside which it takes ") + name_of(dtype));
}

inline void check_dtypes(const std::vector<TensorView>& weights, const char* op) {
  for (size_t n = 1; n < weights.size(); ++n) {
    STD_TORCH_CHECK(weights[n].dtype == weights[0].dtype, "sparsenn::", op, ": weights[", n, "] is ",
                    name_of(weights[n].dtype), ", weights[0] ", name_of(weights[0].dtype), "; they must agree");
  }
}

inline bool is_contiguous(const TensorView& view) {
  int64_t expected = 1;
  for (int64_t i = view.dim - 1; i >= 0; --i) {
    if (view.sizes[i] != 1 && view.strides[i] != expected) return false;
    expected *= view.sizes[i];
  }
  return true;
}

// Whether two indices can name one element: some stride is shorter than the span of the dimensions below it.
inline bool overlaps_itself(const TensorView& view) {
  if (view.numel < 2 || is_contiguous(view)) return false;
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (int64_t i = 0; i < view.dim; ++i) {
    if (view.sizes[i] > 1) axes.emplace_back(view.strides[i], view.sizes[i]);
  }
  std::sort(axes.begin(), axes.end());
  int64_t span = 1;
  for (const auto& [stride, size] : axes) {
    if (stride < span) return true;
    span += stride * (size - 1);
  }
  return false;
}

inline void check_writable(const TensorView& view, const Argument& argument) {
  STD_TORCH_CHECK(!overlaps_itself(view), argument.text(),
                  " is written but several of its elements share memory (is it expanded?); pass a clone");
}

// One past the last byte that a view touches.
inline const char* end_of(const TensorView& view) {
  int64_t last = 0;
  for (int64_t i = 0; i < view.dim; ++i) last += (view.sizes[i] - 1) * view.strides[i];
  return static_cast<const char*>(view.data) + (last + 1) * size_of(view.dtype);
}

inline bool share_memory(const TensorView& a, const TensorView& b) {
  if (a.numel == 0 || b.numel == 0) return false;
  return a.data < end_of(b) && b.data < end_of(a);
}

// A list of tensors that an operator writes.
struct Written {
  const char* name;
  const std::vector<TensorView>* views;
};

// A number that tells sets of tensors apart by where they lie. It is of the set: the order does not matter.
inline uint64_t fingerprint_of(std::initializer_list<Written> lists) {
  const auto mixed = [](uint64_t x) { return (x ^ x >> 32) * 0x9E3779B97F4A7C15; };
  uint64_t sum = 0;
  for (const Written& list : lists) {
    for (const TensorView& view : *list.views) {
      uint64_t own = mixed(reinterpret_cast<uintptr_t>(view.data) + static_cast<uint64_t>(view.dtype));
      for (int64_t i = 0; i < view.dim; ++i) {
        own = mixed(own + static_cast<uint64_t>(view.sizes[i])) + static_cast<uint64_t>(view.strides[i]);
      }
      sum += mixed(own);
    }
  }
  return sum;
}

// No two of the tensors have an element in common, as far as intervals of bytes can tell: all that a dense tensor
// spans is its own; of one with gaps, between which another may lie, it is the first element.
// Sorting would cost a step of many small tensors more than a hundredth, so sets that were found good are remembered.
inline void check_disjoint(const char* op, std::initializer_list<Written> lists) {
  thread_local uint64_t known[16] = {};
  thread_local size_t oldest = 0;
  const uint64_t fingerprint = fingerprint_of(lists);
  for (const uint64_t other : known) {
    if (other == fingerprint) return;
  }
  struct Interval {
    const char *begin, *end;
    Argument argument;
  };
  std::vector<Interval> intervals;
  for (const Written& list : lists) {
    for (size_t n = 0; n < list.views->size(); ++n) {
      const TensorView& view = (*list.views)[n];
      if (view.numel == 0) continue;
      const auto* const begin = static_cast<const char*>(view.data);
      const int64_t bytes = size_of(view.dtype);
      const bool dense = end_of(view) - begin == view.numel * bytes;
      intervals.push_back({begin, dense ? end_of(view) : begin + bytes, {op, list.name, static_cast<int64_t>(n)}});
    }
  }
  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  for (size_t n = 1; n < intervals.size(); ++n) {
    const Interval &before = intervals[n - 1], &own = intervals[n];
    STD_TORCH_CHECK(before.end <= own.begin, own.argument.text(), " and ", before.argument.name, "[",
                    before.argument.index, "] share memory, and both are written; each takes memory of its own");
  }
  known[oldest++ % 16] = fingerprint;
}

inline bool same_place(const TensorView& a, const TensorView& b) {
  return a.data == b.data && std::memcmp(a.strides, b.strides, sizeof(int64_t) * a.dim) == 0;
}

inline std::string device_name(int32_t type, int32_t index) {
  if (type == aoti_torch_device_type_cpu()) return "the CPU";
  const std::string name = type == aoti_torch_device_type_cuda() ? "CUDA device" : "a device of another kind,";
  return name + " " + std::to_string(index);
}

// The device that the dispatcher chose, that of `model`; the other arguments must be there too.
inline void check_device(AtenTensorHandle tensor, AtenTensorHandle model, const Argument& argument) {
  int32_t type, index, own_type, own_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(model, &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(model, &index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &own_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &own_index));
  STD_TORCH_CHECK(own_type == type && own_index == index, argument.text(), " lies on ",
                  device_name(own_type, own_index), "; it takes a tensor on ", device_name(type, index),
                  ", where the others are");
}

inline void check_device(const Tensor& tensor, const Tensor& model, const Argument& argument) {
  check_device(tensor.get(), model.get(), argument);
}

template <class Tensors>
void check_devices(const Tensors& tensors, const Tensor& model, const char* op, const char* name) {
  int64_t index = 0;
  for (const auto& tensor : tensors) {
    if constexpr (std::is_same_v<std::decay_t<decltype(tensor)>, Tensor>) {
      check_device(tensor.get(), model.get(), {op, name, index++});
    } else {
      check_device(tensor, model.get(), {op, name, index++});
    }
  }
}

inline DType scalar_dtype(const Tensor& tensor, const Argument& argument) {
  const TensorView view = view_of(tensor);
  STD_TORCH_CHECK(view.numel == 1 && (view.dtype == DType::float64 || view.dtype == DType::float32), argument.text(),
                  " is ", described(view), "; it takes one float32 or float64 number");
  return view.dtype;
}

// A 0-d float32 or float64 tensor in host memory.
inline Scalar host_scalar(const Tensor& tensor, const Argument& argument) {
  const DType dtype = scalar_dtype(tensor, argument);
  const void* data = tensor.data_ptr();
  const double value = dtype == DType::float64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
  return {value, nullptr, false};
}

// The strides with which a tensor is read as one of the model's shape.
inline std::vector<int64_t> broadcast_strides(const TensorView& view, const TensorView& model,
                                              const Argument& argument) {
  const int64_t added = model.dim - view.dim;
  bool fits = added >= 0;
  std::vector<int64_t> strides(model.dim, 0);
  for (int64_t i = 0; fits && i < view.dim; ++i) {
    fits = view.sizes[i] == model.sizes[added + i] || view.sizes[i] == 1;
    if (view.sizes[i] != 1) strides[added + i] = view.strides[i];
  }
  STD_TORCH_CHECK(fits, argument.text(), " has shape ", shape_of(view), ", which does not broadcast to the shape ",
                  shape_of(model), " of what it acts on");
  return strides;
}

}  // namespace sparsenn::bindings
