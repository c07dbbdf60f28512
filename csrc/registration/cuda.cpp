// The CUDA kernels as implementations of the operators. Loading this library registers them; it needs a torch with
// CUDA.
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
  // which touches less memory than composing the weight while there are no more rows than it has columns (or rows).
  static Tensor linear(const Tensor& input, int64_t rows, const CheckedSpectrum& spectrum, const Vector& bias,
                       const std::vector<int64_t>& sizes, void* stream) {
    const auto& [in, out] = std::pair{spectrum.view.in, spectrum.view.out};
    const Tensor x = matrix(input, rows, in);
    Tensor z;
    if (!spectrum.lambda_in && rows <= in) {
      z = product(x, transposed(spectrum.phi));
      scale(z, spectrum.lambda_out, -1, bias, z, stream);
    } else {
      if (!spectrum.lambda_out && rows <= out) {
        const Tensor scaled = bindings::empty(x, {rows, in});
        scale(x, spectrum.lambda_in, 1, {}, scaled, stream);
        z = product(scaled, transposed(spectrum.phi));
      } else {
        z = product(x, transposed(bindings::compose<CudaDevice>(spectrum, stream)));
      }
      if (bias) scale(z, {}, 1, bias, z, stream);
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

  // Row-major and in their dtype under autocast too, which leaves alone what is written into a tensor that is there.
  static Tensor product(const Tensor& a, const Tensor& b) {
    const Tensor made = bindings::empty(a, {a.sizes()[0], b.sizes()[1]});
    std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                      torch::stable::detail::from(made)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // the same tensor once more, to be given back
    return made;
  }

  // to = from * sign * columns + shift; to may be from.
  static void scale(const Tensor& from, const Vector& columns, double sign, const Vector& shift, const Tensor& to,
                    void* stream) {
    const auto sizes = from.sizes();
    if (from.numel() == 0) return;
    scale_columns(bindings::view_of(from).dtype, from.data_ptr(), columns ? columns->data_ptr() : nullptr, sign,
                  shift ? shift->data_ptr() : nullptr, sizes[0], sizes[1], to.data_ptr(), stream);
  }

  static Tensor input_gradient(const Tensor& g, int64_t rows, const CheckedSpectrum& spectrum, void* stream) {
    if (!spectrum.lambda_in && rows <= spectrum.view.in) {
      const Tensor scaled = bindings::empty(g, {rows, spectrum.view.out});
      scale(g, spectrum.lambda_out, -1, {}, scaled, stream);
      return product(scaled, spectrum.phi);
    }
    if (!spectrum.lambda_out && rows <= spectrum.view.out) {
      const Tensor gradient = product(g, spectrum.phi);
      scale(gradient, spectrum.lambda_in, 1, {}, gradient, stream);
      return gradient;
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
