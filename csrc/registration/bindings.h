// The operators as torch calls them, written once for both devices: checks, views, then the launcher. Stable ABI only.
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

inline std::string shape_of(const TensorView& view) {
  std::string text = "(";
  for (int64_t i = 0; i < view.dim; ++i) text += (i ? ", " : "") + std::to_string(view.sizes[i]);
  return text + (view.dim == 1 ? ",)" : ")");
}

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

template <class Device>
void hadamard_out(std::vector<Tensor> factors, Tensor out) {
  STD_TORCH_CHECK(!factors.empty(), "sparsenn::hadamard: factors is empty; it takes at least one tensor");
  check_devices(factors, out, "hadamard", "factors");
  const std::vector<TensorView> in = views_of(factors);
  const TensorView result = view_of(out);
  check_writable(result, {"hadamard", "out"});
  for (size_t d = 0; d < in.size(); ++d) {
    const Argument factor{"hadamard", "factors", static_cast<int64_t>(d)};
    check_like(in[d], result, result.dtype, factor, "out");
    STD_TORCH_CHECK(!share_memory(in[d], result) || same_place(in[d], result), factor.text(),
                    " shares a part of out's memory; out takes a tensor of its own, or one of the factors");
  }
  const typename Device::Guard guard(out);
  if (result.numel) hadamard<typename Device::Tag>(in.data(), in.size(), result, guard.stream());
}

template <class Device>
Tensor hadamard_new(std::vector<Tensor> factors) {
  STD_TORCH_CHECK(!factors.empty(), "sparsenn::hadamard: factors is empty; it takes at least one tensor");
  Tensor out = torch::stable::empty_like(factors[0]);
  hadamard_out<Device>(factors, out);
  return out;
}

template <class Device>
void hadamard_backward_out(Tensor grad, std::vector<Tensor> factors, std::vector<Tensor> grads) {
  STD_TORCH_CHECK(!factors.empty(), "sparsenn::hadamard_backward: factors is empty; it takes at least one tensor");
  STD_TORCH_CHECK(grads.size() == factors.size(), "sparsenn::hadamard_backward: grads has ", grads.size(),
                  " tensors, factors ", factors.size(), "; one gradient for each factor is needed");
  check_devices(factors, grad, "hadamard_backward", "factors");
  check_devices(grads, grad, "hadamard_backward", "grads");
  const TensorView upstream = view_of(grad);
  const std::vector<TensorView> in = views_of(factors), out = views_of(grads);
  for (size_t d = 0; d < out.size(); ++d) {
    const int64_t index = static_cast<int64_t>(d);
    const Argument own{"hadamard_backward", "grads", index};
    check_like(in[d], upstream, upstream.dtype, {"hadamard_backward", "factors", index}, "grad");
    check_like(out[d], upstream, upstream.dtype, own, "grad");
    check_writable(out[d], own);
    const auto check_apart = [&](const TensorView& other, const std::string& name) {
      STD_TORCH_CHECK(!share_memory(out[d], other), own.text(), " shares memory with ", name,
                      "; it takes a tensor of its own");
    };
    check_apart(upstream, "grad");
    for (size_t k = 0; k < in.size(); ++k) check_apart(in[k], "factors[" + std::to_string(k) + "]");
    for (size_t k = 0; k < d; ++k) check_apart(out[k], "grads[" + std::to_string(k) + "]");
  }
  const typename Device::Guard guard(grad);
  if (upstream.numel)
    hadamard_backward<typename Device::Tag>(upstream, in.data(), in.size(), out.data(), guard.stream());
}

template <class Device>
std::vector<Tensor> hadamard_backward_new(Tensor grad, std::vector<Tensor> factors) {
  std::vector<Tensor> grads;
  grads.reserve(factors.size());
  for (const Tensor& factor : factors) grads.push_back(torch::stable::empty_like(factor));
  hadamard_backward_out<Device>(grad, factors, grads);
  return grads;
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

// What thresholds point to: views and strides, for as long as a launcher runs.
template <class Device>
class Thresholds {
 public:
  explicit Thresholds(int64_t room) { strides_.reserve(room); }

  // A 0-d tensor is a number, another one is read as a tensor of the model's shape.
  Threshold add(const Tensor& tensor, const Tensor& model, const TensorView& of_model, const Argument& argument) {
    if (tensor.dim() == 0) return {Device::scalar(tensor, model, argument), {}};
    check_device(tensor, model, argument);
    TensorView view = view_of(tensor);
    const bool half = size_of(of_model.dtype) == 2;
    STD_TORCH_CHECK(view.dtype == of_model.dtype || (view.dtype == DType::float32 && half), argument.text(), " is ",
                    name_of(view.dtype), "; it acts on ", name_of(of_model.dtype), ", for which it takes the same",
                    half ? " or float32" : "");
    strides_.push_back(broadcast_strides(view, of_model, argument));
    view.numel = of_model.numel, view.dim = of_model.dim;
    view.sizes = of_model.sizes, view.strides = strides_.back().data();
    return {{}, view};
  }

 private:
  std::vector<std::vector<int64_t>> strides_;
};

inline Counts counts_of(const Tensor& tensor, const Tensor& model, int64_t count) {
  if (tensor.numel() == 0) return {nullptr, 0};
  check_device(tensor, model, {"prox_sgd_", "zeros"});
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1 && tensor.numel() == count,
                  "sparsenn::prox_sgd_: zeros takes one int64 element for each weight, or none");
  STD_TORCH_CHECK(count == 1 || tensor.stride(0) != 0, "sparsenn::prox_sgd_: zeros is expanded; pass a clone");
  return {static_cast<int64_t*>(tensor.data_ptr()), tensor.stride(0)};
}

template <class Device>
void prox_sgd_(StableListHandle weight_list, StableListHandle momentum_list, StableListHandle grad_list,
               std::vector<Tensor> lams, Tensor zeros, Tensor lr, double momentum, double dampening,
               double weight_decay, bool nesterov, bool maximize) {
  const TensorList weights(weight_list), momenta(momentum_list), grads(grad_list);
  const int64_t count = weights.size();
  STD_TORCH_CHECK(momentum >= 0 && momentum < 1, "sparsenn::prox_sgd_: momentum is ", momentum,
                  "; it takes 0 <= momentum < 1");
  if (count == 0) return;
  STD_TORCH_CHECK(grads.size() == count, "sparsenn::prox_sgd_: one gradient for each weight is needed");
  STD_TORCH_CHECK(momenta.size() == (momentum != 0 ? count : 0),
                  "sparsenn::prox_sgd_: one momentum for each weight is needed, none where momentum is 0");
  STD_TORCH_CHECK(static_cast<int64_t>(lams.size()) == count || (lams.size() == 1 && lams[0].dim() == 0),
                  "sparsenn::prox_sgd_: lams takes one tensor for each weight, or one 0-d tensor for all");
  const Tensor first = weights.tensor(0);
  const char* const op = "prox_sgd_";
  check_devices(weights, first, op, "weights");
  check_devices(momenta, first, op, "momenta");
  check_devices(grads, first, op, "grads");
  const std::vector<TensorView> weight = views_of(weights), velocity = views_of(momenta), grad = views_of(grads);
  const DType dtype = weight[0].dtype, state = dtype == DType::float64 ? DType::float64 : DType::float32;
  Thresholds<Device> thresholds(count);
  std::vector<Threshold> lam;
  lam.reserve(count);
  check_dtypes(weight, op);
  for (int64_t n = 0; n < count; ++n) {
    check_like(grad[n], weight[n], dtype, {op, "grads", n}, "its weight");
    check_writable(weight[n], {op, "weights", n});
    if (!velocity.empty()) {
      check_like(velocity[n], weight[n], state, {op, "momenta", n}, "its weight");
      check_writable(velocity[n], {op, "momenta", n});
    }
    const bool own = n < static_cast<int64_t>(lams.size());
    lam.push_back(own ? thresholds.add(lams[n], first, weight[n], {op, "lams", n}) : lam[0]);
  }
  check_disjoint(op, {{"weights", &weight}, {"momenta", &velocity}});
  const Counts counts = counts_of(zeros, first, count);
  const typename Device::Guard guard(first);
  const ProxSgdOptions options{
      Device::scalar(lr, first, {op, "lr"}), momentum, dampening, weight_decay, nesterov, maximize};
  prox_sgd<typename Device::Tag>(weight.data(), velocity.empty() ? nullptr : velocity.data(), grad.data(), lam.data(),
                                 counts, count, options, guard.stream());
}

template <class Device>
Tensor soft_threshold_(Tensor input, Tensor threshold) {
  Tensor out = torch::stable::empty_like(input);
  const TensorView in = view_of(input), result = view_of(out);
  Thresholds<Device> thresholds(1);
  const Threshold level = thresholds.add(threshold, input, in, {"soft_threshold", "threshold"});
  const typename Device::Guard guard(input);
  if (in.numel) soft_threshold<typename Device::Tag>(in, level, result, guard.stream());
  return out;
}

template <class Device>
Tensor soft_threshold_backward_(Tensor grad, Tensor input, Tensor threshold) {
  const char* const op = "soft_threshold_backward";
  check_device(grad, input, {op, "grad"});
  Tensor out = torch::stable::empty_like(input);
  const TensorView upstream = view_of(grad), in = view_of(input), result = view_of(out);
  check_like(upstream, in, in.dtype, {op, "grad"}, "input");
  Thresholds<Device> thresholds(1);
  const Threshold level = thresholds.add(threshold, input, in, {op, "threshold"});
  const typename Device::Guard guard(input);
  if (in.numel) soft_threshold_backward<typename Device::Tag>(upstream, in, level, result, guard.stream());
  return out;
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("hadamard", TORCH_BOX(&hadamard_new<Device>));
  m.impl("hadamard_out", TORCH_BOX(&hadamard_out<Device>));
  m.impl("hadamard_backward", TORCH_BOX(&hadamard_backward_new<Device>));
  m.impl("hadamard_backward_out", TORCH_BOX(&hadamard_backward_out<Device>));
  m.impl("prox_sgd_", TORCH_BOX(&prox_sgd_<Device>));
  m.impl("soft_threshold", TORCH_BOX(&soft_threshold_<Device>));
  m.impl("soft_threshold_backward", TORCH_BOX(&soft_threshold_backward_<Device>));
}

}  // namespace sparsenn::bindings
