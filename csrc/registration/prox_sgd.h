// The proximal step as torch calls it, for both devices.
#pragma once

#include "registration/soft_threshold.h"

namespace sparsenn::bindings {

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
void implement_prox_sgd(torch::stable::detail::StableLibrary& m) {
  m.impl("prox_sgd_", TORCH_BOX(&prox_sgd_<Device>));
}

}  // namespace sparsenn::bindings
