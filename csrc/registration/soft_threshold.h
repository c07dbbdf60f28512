// Soft thresholding as torch calls it, and thresholds as kernels take them, for both devices.
#pragma once

#include "registration/checks.h"

namespace sparsenn::bindings {

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
void implement_soft_threshold(torch::stable::detail::StableLibrary& m) {
  m.impl("soft_threshold", TORCH_BOX(&soft_threshold_<Device>));
  m.impl("soft_threshold_backward", TORCH_BOX(&soft_threshold_backward_<Device>));
}

}  // namespace sparsenn::bindings
