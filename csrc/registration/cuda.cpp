// The CUDA kernels as implementations of the operators. Loading this library registers them; it needs a torch with
// CUDA.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>

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

using bindings::CheckedSpectrum;
using bindings::ScalarType;
using bindings::Vector;
using torch::stable::Tensor;

struct CudaDevice {
  using Tag = Cuda;

  // Makes the tensor's device the current one, and finds the stream that is current there.
  class Guard {
   public:
    explicit Guard(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}

    void* stream() const {
      void* stream = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
      return stream;
    }

   private:
    torch::stable::accelerator::DeviceIndex device_;
    torch::stable::accelerator::DeviceGuard guard_;
  };

  // A number on the CPU is read now, one on the device by the kernel: nothing waits for the device.
  static Scalar scalar(const Tensor& tensor, const Tensor& model, const bindings::Argument& argument) {
    if (tensor.is_cpu()) return bindings::host_scalar(tensor, argument);
    bindings::check_device(tensor, model, argument);
    const DType dtype = bindings::scalar_dtype(tensor, argument);
    return {0.0, tensor.data_ptr(), dtype == DType::float64};
  }

  // The products are the vendor's. An eigenvalue that stands alone scales the rows or columns of what is multiplied,
  // where that touches less memory than composing the weight. What a half type would round, or overflow, before it is
  // scaled stays in float32.
  static Tensor linear(const Tensor& input, int64_t rows, const CheckedSpectrum& spectrum, const Vector& bias,
                       const std::vector<int64_t>& sizes, void* stream) {
    const auto& [in, out] = std::pair{spectrum.view.in, spectrum.view.out};
    const Tensor x = matrix(input, rows, in);
    Tensor z;
    if (!spectrum.lambda_in && scaled_product_pays(rows, in, spectrum)) {
      z = scaled_product(x, transposed(spectrum.phi), spectrum.lambda_out, -1, bias, stream);
    } else if (!spectrum.lambda_out && rows <= out) {
      const Tensor scaled = bindings::empty(x, {rows, in});
      scale(x, spectrum.lambda_in, 1, {}, scaled, stream);
      z = product(scaled, transposed(spectrum.phi), bias);
    } else {
      z = product(x, transposed(bindings::compose<CudaDevice>(spectrum, stream)), bias);
    }
    return torch::stable::view(z, sizes);
  }

  // The gradient of the weight becomes that of phi in its place.
  static std::array<Tensor, 5> linear_backward(const Tensor& grad, const Tensor& input, int64_t rows,
                                               const CheckedSpectrum& spectrum, int64_t wanted, void* stream) {
    const auto& [in, out] = std::pair{spectrum.view.in, spectrum.view.out};
    const Tensor g = matrix(grad, rows, out);
    std::array<Tensor, 5> made;
    if (wanted & (bindings::kPhi | bindings::kLambdaIn | bindings::kLambdaOut)) {
      const Tensor of_weight = product(transposed(g), matrix(input, rows, in));
      std::tie(made[0], made[1], made[2]) =
          bindings::backward_weight<CudaDevice>(of_weight, spectrum, wanted, true, stream);
    }
    if (wanted & bindings::kInput) {
      made[3] = torch::stable::view(input_gradient(g, rows, spectrum, stream), bindings::sizes_of(input));
    }
    if (wanted & bindings::kBias) {
      const int64_t first = 0;
      made[4] = bindings::empty(g, {out});
      torch::stable::sum_out(made[4], g, torch::headeronly::IntHeaderOnlyArrayRef(&first, 1));
    }
    for (Tensor& tensor : made) {
      if (!tensor.defined()) tensor = bindings::empty(g, {0});  // its own: outputs of an operator are no aliases
    }
    return made;
  }

 private:
  static Tensor matrix(const Tensor& tensor, int64_t rows, int64_t columns) {
    return torch::stable::view(tensor, std::vector<int64_t>{rows, columns});
  }

  static Tensor transposed(const Tensor& tensor) { return torch::stable::transpose(tensor, 0, 1); }

  static bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }

  // Whether scaling a product of so many rows moves fewer bytes than composing the weight, whose side of the sum is
  // `width`: on its way through float32 a half type's product costs 8 bytes more for each of its numbers, and its
  // weight 4 less for each of phi's.
  static bool scaled_product_pays(int64_t rows, int64_t width, const CheckedSpectrum& spectrum) {
    return (is_half(spectrum.view.dtype) ? 2 * rows : rows) <= width;
  }

  // a b + shift, row-major and in their dtype. These calls are below the dispatcher, and so below autocast.
  static Tensor product(const Tensor& a, const Tensor& b, const Vector& shift = {}) {
    const Tensor made = bindings::empty(a, {a.sizes()[0], b.sizes()[1]});
    if (shift) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(made.get(), shift->get(), a.get(), b.get(), 1, 1));
    } else {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(made.get(), a.get(), b.get()));
    }
    return made;
  }

  // a b times sign * columns, plus shift; of half types rounded once. torch 2.10 has a product with another dtype in
  // its dispatcher alone, where autocast leaves it alone.
  static Tensor scaled_product(const Tensor& a, const Tensor& b, const Vector& columns, double sign,
                               const Vector& shift, void* stream) {
    if (!is_half(bindings::view_of(a).dtype)) {
      const Tensor made = product(a, b);
      scale(made, columns, sign, shift, made, stream);
      return made;
    }
    const std::vector<int64_t> sizes{a.sizes()[0], b.sizes()[1]};
    const Tensor wide = torch::stable::new_empty(a, sizes, ScalarType::Float), made = bindings::empty(a, sizes);
    std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                      torch::stable::detail::from(ScalarType::Float),
                                      torch::stable::detail::from(wide)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // the same tensor once more, to be given back
    scale(wide, columns, sign, shift, made, stream);
    return made;
  }

  // to = from * sign * columns + shift; to may be from.
  static void scale(const Tensor& from, const Vector& columns, double sign, const Vector& shift, const Tensor& to,
                    void* stream) {
    const auto sizes = from.sizes();
    if (from.numel() == 0) return;
    scale_columns(bindings::view_of(from).dtype, from.data_ptr(), columns ? columns->data_ptr() : nullptr, sign,
                  shift ? shift->data_ptr() : nullptr, sizes[0], sizes[1], bindings::view_of(to).dtype, to.data_ptr(),
                  stream);
  }

  static Tensor input_gradient(const Tensor& g, int64_t rows, const CheckedSpectrum& spectrum, void* stream) {
    if (!spectrum.lambda_in && rows <= spectrum.view.in) {
      const Tensor scaled = bindings::empty(g, {rows, spectrum.view.out});
      scale(g, spectrum.lambda_out, -1, {}, scaled, stream);
      return product(scaled, spectrum.phi);
    }
    if (!spectrum.lambda_out && scaled_product_pays(rows, spectrum.view.out, spectrum)) {
      return scaled_product(g, spectrum.phi, spectrum.lambda_in, 1, {}, stream);
    }
    return product(g, bindings::compose<CudaDevice>(spectrum, stream));
  }
};

}  // namespace
}  // namespace sparsenn

STABLE_TORCH_LIBRARY_IMPL(sparsenn, CUDA, m) {
  sparsenn::bindings::implement_hadamard<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_soft_threshold<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_prox_sgd<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_spectral<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_ridge_norm<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_stacked<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_factorized_sgd<sparsenn::CudaDevice>(m);
  sparsenn::bindings::implement_factorized_adam<sparsenn::CudaDevice>(m);
}
