// The CPU kernels as implementations of the operators. Loading this library registers them.
#include "registration/bindings.h"

namespace sparsenn {
namespace {

struct CpuDevice {
  using Tag = Cpu;

  struct Guard {
    explicit Guard(const torch::stable::Tensor&) {}
    void* stream() const { return nullptr; }
  };

  static Scalar scalar(const torch::stable::Tensor& tensor, const torch::stable::Tensor& model) {
    bindings::check_device(tensor, model.device());
    return bindings::host_scalar(tensor);
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
}
