// Adam on factors, for both devices.
#pragma once

#include "registration/measures.h"

namespace sparsenn::bindings {

template <class Device>
void factorized_adam_(StableListHandle weight_list, StableListHandle factor_list, StableListHandle mean_list,
                      StableListHandle square_list, StableListHandle largest_list, StableListHandle step_list,
                      StableListHandle grad_list, Tensor lr, Tensor lam, double beta1, double beta2, double eps,
                      double weight_decay, bool decoupled, bool maximize, std::optional<Tensor> measures,
                      double threshold) {
  const TensorList weights(weight_list), factors(factor_list), means(mean_list), squares(square_list),
      largest(largest_list), steps(step_list), grads(grad_list);
  const int64_t count = weights.size();
  if (count == 0) return;
  const int64_t depth = factors.size() / count;
  STD_TORCH_CHECK(depth > 0 && factors.size() == depth * count,
                  "sparsenn::factorized_adam_: the factors can't be divided among the weights");
  STD_TORCH_CHECK(grads.size() == count && steps.size() == count,
                  "sparsenn::factorized_adam_: one gradient and one step for each weight are needed");
  STD_TORCH_CHECK(means.size() == factors.size() && squares.size() == factors.size(),
                  "sparsenn::factorized_adam_: one of means and one of squares for each factor are needed");
  STD_TORCH_CHECK(largest.size() == 0 || largest.size() == factors.size(),
                  "sparsenn::factorized_adam_: largest takes one tensor for each factor, or none");
  const Tensor first = weights.tensor(0);
  const char* const op = "factorized_adam_";
  const std::pair<const char*, const TensorList*> lists[] = {
      {"weights", &weights}, {"factors", &factors}, {"means", &means}, {"squares", &squares},
      {"largest", &largest}, {"steps", &steps},     {"grads", &grads}};
  for (const auto& [name, list] : lists) check_devices(*list, first, op, name);
  const std::vector<TensorView> weight = views_of(weights), factor = views_of(factors), mean = views_of(means),
                                square = views_of(squares), most = views_of(largest), step = views_of(steps),
                                grad = views_of(grads);
  const DType dtype = weight[0].dtype, state = dtype == DType::float64 ? DType::float64 : DType::float32;
  const std::pair<const char*, const std::vector<TensorView>*> states[] = {
      {"factors", &factor}, {"means", &mean}, {"squares", &square}, {"largest", &most}};
  check_dtypes(weight, op);
  for (int64_t n = 0; n < count; ++n) {
    check_like(grad[n], weight[n], dtype, {op, "grads", n}, "its weight");
    check_writable(weight[n], {op, "weights", n});
    STD_TORCH_CHECK(step[n].dtype == DType::float32 && step[n].dim == 0, "sparsenn::factorized_adam_: steps[", n,
                    "] is ", described(step[n]), "; it takes a 0-d float32 tensor");
    for (const auto& [name, views] : states) {
      for (int64_t k = n * depth; k < (n + 1) * depth && !views->empty(); ++k) {
        check_like((*views)[k], weight[n], state, {op, name, k}, "its weight");
        check_writable((*views)[k], {op, name, k});
      }
    }
  }
  check_disjoint(op, {{"weights", &weight},
                      {"factors", &factor},
                      {"means", &mean},
                      {"squares", &square},
                      {"largest", &most},
                      {"steps", &step}});
  const typename Device::Guard guard(first);
  const FactorizedAdamOptions options{Device::scalar(lr, first, {op, "lr"}),
                                      Device::scalar(lam, first, {op, "lam"}),
                                      beta1,
                                      beta2,
                                      eps,
                                      weight_decay,
                                      decoupled,
                                      maximize};
  const AdamTensors tensors{
      weight.data(), factor.data(), mean.data(), square.data(), most.empty() ? nullptr : most.data(),
      step.data(),   grad.data(),   count,       depth};
  const int64_t bytes = factorized_adam_workspace<typename Device::Tag>(count);
  Tensor workspace;
  if (bytes) workspace = torch::stable::new_empty(first, std::vector<int64_t>{bytes}, ScalarType::Byte);
  const MeasuresPlace<Device> place(op, measures, threshold, first, weight);
  factorized_adam<typename Device::Tag>(tensors, options, place.wanted(), bytes ? workspace.data_ptr() : nullptr,
                                        guard.stream());
}

template <class Device>
void implement_factorized_adam(torch::stable::detail::StableLibrary& m) {
  m.impl("factorized_adam_", TORCH_BOX(&factorized_adam_<Device>));
}

}  // namespace sparsenn::bindings
