// The CPU kernels as implementations of the operators. Loading this library registers them.
#include "registration/factorized_adam.h"
#include "registration/factorized_sgd.h"
#include "registration/hadamard.h"
#include "registration/prox_sgd.h"
#include "registration/ridge_norm.h"
#include "registration/soft_threshold.h"
#include "registration/spectral.h"
#include "registration/stacked.h"

namespace sparsenn {
namespace {

using torch::stable::Tensor;

struct CpuDevice {
  using Tag = Cpu;

  struct Guard {
    explicit Guard(const Tensor&) {}
    void* stream() const { return nullptr; }
  };

  static Scalar scalar(const Tensor& tensor, const Tensor& model, const bindings::Argument& argument) {
    bindings::check_device(tensor, model, argument);
    return bindings::host_scalar(tensor, argument);
  }

  // One kernel each: the weight is composed in the cache.
  static Tensor linear(const Tensor& input, int64_t rows, const bindings::CheckedSpectrum& spectrum,
                       const bindings::Vector& bias, const std::vector<int64_t>& sizes, void*) {
    Tensor output = bindings::empty(input, sizes);
    if (output.numel()) {
      spectral_linear(input.data_ptr(), spectrum.view, bias ? bias->data_ptr() : nullptr, rows, output.data_ptr());
    }
    return output;
  }

  static std::array<Tensor, 5> linear_backward(const Tensor& grad, const Tensor& input, int64_t rows,
                                               const bindings::CheckedSpectrum& spectrum, int64_t wanted, void*) {
    const int64_t in = spectrum.view.in, out = spectrum.view.out;
    const std::vector<int64_t> sizes[5] = {{out, in}, {in}, {out}, bindings::sizes_of(input), {out}};
    std::array<Tensor, 5> made;
    void* to[5];
    for (int k = 0; k < 5; ++k) {
      made[k] = bindings::empty_or_none(input, wanted >> k & 1, sizes[k]);
      to[k] = bindings::data_or_null(made[k], wanted >> k & 1);
    }
    spectral_linear_backward(grad.data_ptr(), input.data_ptr(), spectrum.view, rows,
                             {to[0], to[1], to[2], to[3], to[4]});
    return made;
  }
};

void torch_parallel_for(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

}  // namespace
}  // namespace sparsenn

STABLE_TORCH_LIBRARY_IMPL(sparsenn, CPU, m) {
  sparsenn::set_parallel_for(sparsenn::torch_parallel_for);
  sparsenn::bindings::implement_hadamard<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_soft_threshold<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_prox_sgd<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_spectral<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_ridge_norm<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_stacked<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_factorized_sgd<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_factorized_adam<sparsenn::CpuDevice>(m);
}
