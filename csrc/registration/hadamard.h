// The product of factors as torch calls it, for both devices.
#pragma once

#include "registration/checks.h"

namespace sparsenn::bindings {

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

template <class Device>
void implement_hadamard(torch::stable::detail::StableLibrary& m) {
  m.impl("hadamard", TORCH_BOX(&hadamard_new<Device>));
  m.impl("hadamard_out", TORCH_BOX(&hadamard_out<Device>));
  m.impl("hadamard_backward", TORCH_BOX(&hadamard_backward_new<Device>));
  m.impl("hadamard_backward_out", TORCH_BOX(&hadamard_backward_out<Device>));
}

}  // namespace sparsenn::bindings
