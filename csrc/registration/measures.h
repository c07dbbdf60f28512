// What a step on factors measures, for both devices.
#pragma once

#include <optional>

#include "math/measures.h"
#include "registration/checks.h"

namespace sparsenn::bindings {

// Where steps on factors put what they measure, and the memory that they need for it.
template <class Device>
class MeasuresPlace {
 public:
  MeasuresPlace(const char* op, const std::optional<Tensor>& tensor, double threshold, const Tensor& model,
                const std::vector<TensorView>& weights)
      : wanted_{nullptr, threshold, nullptr} {
    if (!tensor) return;
    const int64_t count = static_cast<int64_t>(weights.size());
    check_device(*tensor, model, {op, "measures"});
    const TensorView view = view_of(*tensor);
    STD_TORCH_CHECK(view.dtype == DType::float64 && view.dim == 2 && view.sizes[0] == count &&
                        view.sizes[1] == kMeasures && is_contiguous(view),
                    "sparsenn::", op, ": measures is ", described(view),
                    "; it takes a contiguous float64 tensor of shape (", count, ", ", kMeasures, "), or None");
    STD_TORCH_CHECK(threshold >= 0, "sparsenn::", op, ": threshold is ", threshold, "; it takes a number >= 0");
    wanted_.data = static_cast<double*>(view.data);
    const int64_t bytes = measures_workspace<typename Device::Tag>(weights.data(), count);
    workspace_ = torch::stable::new_empty(model, std::vector<int64_t>{bytes}, ScalarType::Byte);
    wanted_.workspace = workspace_->data_ptr();
  }

  const Measures& wanted() const { return wanted_; }

 private:
  Measures wanted_;
  std::optional<Tensor> workspace_;
};

}  // namespace sparsenn::bindings
