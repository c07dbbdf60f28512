// The CUDA kernels as implementations of the operators. Loading this library registers them; it needs a torch with
// CUDA.
#include <torch/csrc/stable/accelerator.h>

#include "registration/bindings.h"

namespace sparsenn {
namespace {

struct CudaDevice {
  using Tag = Cuda;

  // Makes the tensor's device the current one, and finds the stream that is current there.
  class Guard {
   public:
    explicit Guard(const torch::stable::Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}

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
  static Scalar scalar(const torch::stable::Tensor& tensor, const torch::stable::Tensor& model) {
    if (tensor.is_cpu()) return bindings::host_scalar(tensor);
    bindings::check_device(tensor, model.device());
    const DType dtype = bindings::scalar_dtype(tensor);
    return {0.0, tensor.data_ptr(), dtype == DType::float64};
  }
};

}  // namespace
}  // namespace sparsenn

STABLE_TORCH_LIBRARY_IMPL(sparsenn, CUDA, m) { sparsenn::bindings::implement<sparsenn::CudaDevice>(m); }
