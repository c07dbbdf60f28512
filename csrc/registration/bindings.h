// The operators as torch calls them, written once for both devices: checks, views, then the launcher. Stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <string>
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

inline void check_like(const TensorView& view, const TensorView& model, DType dtype, const char* name) {
  STD_TORCH_CHECK(view.dtype == dtype, "sparsenn: ", name, " has a dtype that does not fit the others");
  STD_TORCH_CHECK(view.dim == model.dim && std::memcmp(view.sizes, model.sizes, sizeof(int64_t) * model.dim) == 0,
                  "sparsenn: ", name, " has a shape that differs from the others'");
}

inline void check_like(const std::vector<TensorView>& views, const TensorView& model, DType dtype, const char* name) {
  for (const TensorView& view : views) check_like(view, model, dtype, name);
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

inline void check_writable(const TensorView& view, const char* name) {
  STD_TORCH_CHECK(!overlaps_itself(view), "sparsenn: ", name,
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

inline bool same_place(const TensorView& a, const TensorView& b) {
  return a.data == b.data && std::memcmp(a.strides, b.strides, sizeof(int64_t) * a.dim) == 0;
}

// The device that the dispatcher chose; the other arguments must be there too.
inline void check_device(const Tensor& tensor, const torch::stable::Device& device) {
  STD_TORCH_CHECK(tensor.device() == device, "sparsenn: the arguments lie on different devices");
}

inline void check_device(const std::vector<Tensor>& tensors, const torch::stable::Device& device) {
  for (const Tensor& tensor : tensors) check_device(tensor, device);
}

inline void check_device(const TensorList& tensors, const Tensor& model) {
  int32_t type, index, own_type, own_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(model.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(model.get(), &index));
  for (const AtenTensorHandle tensor : tensors) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &own_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &own_index));
    STD_TORCH_CHECK(own_type == type && own_index == index, "sparsenn: the arguments lie on different devices");
  }
}

template <class Device>
void hadamard_out(std::vector<Tensor> factors, Tensor out) {
  STD_TORCH_CHECK(!factors.empty(), "sparsenn::hadamard: factors is empty; it takes at least one tensor");
  check_device(factors, out.device());
  const std::vector<TensorView> in = views_of(factors);
  const TensorView result = view_of(out);
  check_like(in, result, result.dtype, "a factor");
  check_writable(result, "out");
  for (const TensorView& factor : in) {
    STD_TORCH_CHECK(!share_memory(factor, result) || same_place(factor, result),
                    "sparsenn::hadamard: out shares a part of a factor's memory; pass a tensor of its own");
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
  STD_TORCH_CHECK(grads.size() == factors.size(),
                  "sparsenn::hadamard_backward: one gradient for each factor is needed");
  check_device(factors, grad.device());
  check_device(grads, grad.device());
  const TensorView upstream = view_of(grad);
  const std::vector<TensorView> in = views_of(factors), out = views_of(grads);
  check_like(in, upstream, upstream.dtype, "a factor");
  check_like(out, upstream, upstream.dtype, "a gradient");
  for (size_t d = 0; d < out.size(); ++d) {
    check_writable(out[d], "a gradient");
    bool shared = share_memory(out[d], upstream);
    for (const TensorView& factor : in) shared = shared || share_memory(out[d], factor);
    for (size_t k = 0; k < d; ++k) shared = shared || share_memory(out[d], out[k]);
    STD_TORCH_CHECK(!shared, "sparsenn::hadamard_backward: a gradient shares memory with another argument");
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

inline DType scalar_dtype(const Tensor& tensor) {
  const DType dtype = view_of(tensor).dtype;
  STD_TORCH_CHECK(tensor.numel() == 1 && (dtype == DType::float64 || dtype == DType::float32),
                  "sparsenn: lr, and a lam or threshold without dimensions, take one float32 or float64 number");
  return dtype;
}

// A 0-d float32 or float64 tensor in host memory.
inline Scalar host_scalar(const Tensor& tensor) {
  const DType dtype = scalar_dtype(tensor);
  const void* data = tensor.data_ptr();
  const double value = dtype == DType::float64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
  return {value, nullptr, false};
}

inline std::string shape_of(const TensorView& view) {
  std::string text = "(";
  for (int64_t i = 0; i < view.dim; ++i) text += (i ? ", " : "") + std::to_string(view.sizes[i]);
  return text + (view.dim == 1 ? ",)" : ")");
}

// The strides with which a tensor is read as one of the model's shape.
inline std::vector<int64_t> broadcast_strides(const TensorView& view, const TensorView& model, const char* name) {
  const int64_t added = model.dim - view.dim;
  bool fits = added >= 0;
  std::vector<int64_t> strides(model.dim, 0);
  for (int64_t i = 0; fits && i < view.dim; ++i) {
    fits = view.sizes[i] == model.sizes[added + i] || view.sizes[i] == 1;
    if (view.sizes[i] != 1) strides[added + i] = view.strides[i];
  }
  STD_TORCH_CHECK(fits, "sparsenn: ", name, " has shape ", shape_of(view), ", which does not broadcast to the shape ",
                  shape_of(model), " of what it acts on");
  return strides;
}

// What thresholds point to: views and strides, for as long as a launcher runs.
template <class Device>
class Thresholds {
 public:
  explicit Thresholds(int64_t room) { strides_.reserve(room); }

  // A 0-d tensor is a number, another one is read as a tensor of the model's shape.
  Threshold add(const Tensor& tensor, const Tensor& model, const TensorView& of_model, const char* name) {
    if (tensor.dim() == 0) return {Device::scalar(tensor, model), {}};
    check_device(tensor, model.device());
    TensorView view = view_of(tensor);
    STD_TORCH_CHECK(view.dtype == of_model.dtype || (view.dtype == DType::float32 && size_of(of_model.dtype) == 2),
                    "sparsenn: ", name,
                    " has a dtype that does not fit what it acts on: it takes the same, or float32 for half types");
    strides_.push_back(broadcast_strides(view, of_model, name));
    view.numel = of_model.numel, view.dim = of_model.dim;
    view.sizes = of_model.sizes, view.strides = strides_.back().data();
    return {{}, view};
  }

 private:
  std::vector<std::vector<int64_t>> strides_;
};

inline Counts counts_of(const Tensor& tensor, const Tensor& model, int64_t count) {
  if (tensor.numel() == 0) return {nullptr, 0};
  check_device(tensor, model.device());
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
  for (const auto* tensors : {&weights, &momenta, &grads}) check_device(*tensors, first);
  const std::vector<TensorView> weight = views_of(weights), velocity = views_of(momenta), grad = views_of(grads);
  const DType dtype = weight[0].dtype, state = dtype == DType::float64 ? DType::float64 : DType::float32;
  Thresholds<Device> thresholds(count);
  std::vector<Threshold> lam;
  lam.reserve(count);
  for (int64_t n = 0; n < count; ++n) {
    check_like(weight[n], weight[n], dtype, "a weight");
    check_like(grad[n], weight[n], dtype, "a gradient");
    check_writable(weight[n], "a weight");
    if (!velocity.empty()) {
      check_like(velocity[n], weight[n], state, "a momentum");
      check_writable(velocity[n], "a momentum");
    }
    const bool own = n < static_cast<int64_t>(lams.size());
    lam.push_back(own ? thresholds.add(lams[n], first, weight[n], "a tensor of lams") : lam[0]);
  }
  const Counts counts = counts_of(zeros, first, count);
  const typename Device::Guard guard(first);
  const ProxSgdOptions options{Device::scalar(lr, first), momentum, dampening, weight_decay, nesterov, maximize};
  prox_sgd<typename Device::Tag>(weight.data(), velocity.empty() ? nullptr : velocity.data(), grad.data(), lam.data(),
                                 counts, count, options, guard.stream());
}

template <class Device>
Tensor soft_threshold_(Tensor input, Tensor threshold) {
  Tensor out = torch::stable::empty_like(input);
  const TensorView in = view_of(input), result = view_of(out);
  Thresholds<Device> thresholds(1);
  const Threshold level = thresholds.add(threshold, input, in, "threshold");
  const typename Device::Guard guard(input);
  if (in.numel) soft_threshold<typename Device::Tag>(in, level, result, guard.stream());
  return out;
}

template <class Device>
Tensor soft_threshold_backward_(Tensor grad, Tensor input, Tensor threshold) {
  check_device(grad, input.device());
  Tensor out = torch::stable::empty_like(input);
  const TensorView upstream = view_of(grad), in = view_of(input), result = view_of(out);
  check_like(upstream, in, in.dtype, "a gradient");
  Thresholds<Device> thresholds(1);
  const Threshold level = thresholds.add(threshold, input, in, "threshold");
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
