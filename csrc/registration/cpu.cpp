// The CPU kernels as implementations of the operators. Loading this library registers them.
#include "registration/bindings.h"
#include "registration/spectral.h"

namespace sparsenn {
namespace {

using torch::stable::Tensor;

struct CpuDevice {
  using Tag = Cpu;

  struct Guard {
    explicit Guard(const Tensor&) {}
    void* stream() const { return nullptr; }
  };

  static Scalar scalar(const Tensor& tensor, const Tensor& model) {
    bindings::check_device(tensor, model.device());
    return bindings::host_scalar(tensor);
  }

  // One kernel each: the weight is composed in the cache.
  static Tensor linear(const Tensor& rows, const bindings::CheckedSpectrum& spectrum, const bindings::Vector& bias,
                       std::vector<int64_t> sizes, void*) {
    Tensor output = bindings::empty(rows, std::move(sizes));
    if (output.numel()) {
      spectral_linear(rows.data_ptr(), spectrum.view, bias ? bias->data_ptr() : nullptr, rows.sizes()[0],
                      output.data_ptr());
    }
    return output;
  }

  static std::array<Tensor, 5> linear_backward(const Tensor& grad, const Tensor& rows,
                                               const bindings::CheckedSpectrum& spectrum, int64_t wanted, void*) {
    const auto& [dtype, out, in, kernel, phi, lambda_in, lambda_out] = spectrum.view;
    const int64_t batch = rows.sizes()[0];
    std::array<Tensor, 5> made{bindings::empty_or_none(rows, wanted & bindings::kPhi, {out, in}),
                               bindings::empty_or_none(rows, wanted & bindings::kLambdaIn, {in}),
                               bindings::empty_or_none(rows, wanted & bindings::kLambdaOut, {out}),
                               bindings::empty_or_none(rows, wanted & bindings::kInput, {batch, in}),
                               bindings::empty_or_none(rows, wanted & bindings::kBias, {out})};
    void* to[5];
    for (int k = 0; k < 5; ++k) to[k] = bindings::data_or_null(made[k], wanted >> k & 1);
    spectral_linear_backward(grad.data_ptr(), rows.data_ptr(), spectrum.view, batch, {to[0], to[1], to[2], to[3], to[4]});
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
  sparsenn::bindings::implement<sparsenn::CpuDevice>(m);
  sparsenn::bindings::implement_spectral<sparsenn::CpuDevice>(m);
}
