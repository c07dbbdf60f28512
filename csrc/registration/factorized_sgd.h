// SGD on factors, all of a weight's or one root, for both devices.
#pragma once

#include "registration/measures.h"

namespace sparsenn::bindings {

using FactorizedLauncher = void (*)(const TensorView*, const TensorView*, const TensorView*, const TensorView*, int64_t,
                                    int64_t, const FactorizedSgdOptions&, const Measures&, void*);

// The steps on factors, which `name` calls those of the state; `kept` says how many of them each weight has, beside as
// many momenta.
template <class Device>
void step_on_factors(FactorizedLauncher launcher, const char* op, const char* name, const TensorList& weights,
                     const TensorList& factors, const TensorList& momenta, const TensorList& grads, int64_t kept,
                     int64_t depth, const Tensor& lr, const Tensor& lam, double momentum, double dampening,
                     double weight_decay, bool nesterov, bool maximize, const std::optional<Tensor>& measures,
                     double threshold) {
  const int64_t count = weights.size();
  STD_TORCH_CHECK(grads.size() == count, "sparsenn::", op, ": one gradient for each weight is needed");
  STD_TORCH_CHECK(momenta.size() == (momentum != 0 ? factors.size() : 0), "sparsenn::", op,
                  ": one momentum for each factor is needed, none where momentum is 0");
  const Tensor first = weights.tensor(0);
  check_devices(weights, first, op, "weights");
  check_devices(factors, first, op, name);
  check_devices(momenta, first, op, "momenta");
  check_devices(grads, first, op, "grads");
  const std::vector<TensorView> weight = views_of(weights), factor = views_of(factors), velocity = views_of(momenta),
                                grad = views_of(grads);
  const DType dtype = weight[0].dtype, state = dtype == DType::float64 ? DType::float64 : DType::float32;
  check_dtypes(weight, op);
  for (int64_t n = 0; n < count; ++n) {
    check_like(grad[n], weight[n], dtype, {op, "grads", n}, "its weight");
    check_writable(weight[n], {op, "weights", n});
    for (int64_t k = n * kept; k < (n + 1) * kept; ++k) {
      check_like(factor[k], weight[n], state, {op, name, k}, "its weight");
      check_writable(factor[k], {op, name, k});
      if (velocity.empty()) continue;
      check_like(velocity[k], weight[n], state, {op, "momenta", k}, "its weight");
      check_writable(velocity[k], {op, "momenta", k});
    }
  }
  check_disjoint(op, {{"weights", &weight}, {name, &factor}, {"momenta", &velocity}});
  const typename Device::Guard guard(first);
  const FactorizedSgdOptions options{Device::scalar(lr, first, {op, "lr"}),
                                     Device::scalar(lam, first, {op, "lam"}),
                                     momentum,
                                     dampening,
                                     weight_decay,
                                     nesterov,
                                     maximize};
  const MeasuresPlace<Device> place(op, measures, threshold, first, weight);
  launcher(weight.data(), factor.data(), velocity.empty() ? nullptr : velocity.data(), grad.data(), count, depth,
           options, place.wanted(), guard.stream());
}

template <class Device>
void factorized_sgd_(StableListHandle weight_list, StableListHandle factor_list, StableListHandle momentum_list,
                     StableListHandle grad_list, Tensor lr, Tensor lam, double momentum, double dampening,
                     double weight_decay, bool nesterov, bool maximize, std::optional<Tensor> measures,
                     double threshold) {
  const TensorList weights(weight_list), factors(factor_list), momenta(momentum_list), grads(grad_list);
  if (weights.size() == 0) return;
  const int64_t depth = factors.size() / weights.size();
  STD_TORCH_CHECK(depth > 0 && factors.size() == depth * weights.size(),
                  "sparsenn::factorized_sgd_: the factors can't be divided among the weights");
  step_on_factors<Device>(&factorized_sgd<typename Device::Tag>, "factorized_sgd_", "factors", weights, factors,
                          momenta, grads, depth, depth, lr, lam, momentum, dampening, weight_decay, nesterov, maximize,
                          measures, threshold);
}

template <class Device>
void balanced_sgd_(StableListHandle weight_list, StableListHandle root_list, StableListHandle momentum_list,
                   StableListHandle grad_list, Tensor lr, Tensor lam, int64_t depth, double momentum, double dampening,
                   double weight_decay, bool nesterov, bool maximize, std::optional<Tensor> measures,
                   double threshold) {
  const TensorList weights(weight_list), roots(root_list), momenta(momentum_list), grads(grad_list);
  STD_TORCH_CHECK(depth > 0 && depth <= (int64_t{1} << 30), "sparsenn::balanced_sgd_: depth is ", depth,
                  "; it takes an integer >= 1");
  if (weights.size() == 0) return;
  STD_TORCH_CHECK(roots.size() == weights.size(), "sparsenn::balanced_sgd_: one root for each weight is needed");
  step_on_factors<Device>(&balanced_sgd<typename Device::Tag>, "balanced_sgd_", "roots", weights, roots, momenta, grads,
                          1, depth, lr, lam, momentum, dampening, weight_decay, nesterov, maximize, measures,
                          threshold);
}

template <class Device>
void implement_factorized_sgd(torch::stable::detail::StableLibrary& m) {
  m.impl("factorized_sgd_", TORCH_BOX(&factorized_sgd_<Device>));
  m.impl("balanced_sgd_", TORCH_BOX(&balanced_sgd_<Device>));
}

}  // namespace sparsenn::bindings
