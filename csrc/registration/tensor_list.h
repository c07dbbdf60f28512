// The tensors of a Tensor[] argument, for operators that take thousands: no shared ownership of each, few calls into
// torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <utility>
#include <vector>

#include "launchers.h"

namespace sparsenn::bindings {

class TensorList {
 public:
  // The delegation makes the destructor run where a read throws.
  explicit TensorList(StableListHandle list) : TensorList() {
    const std::unique_ptr<StableListOpaque, decltype(&torch_delete_list)> owner(list, &torch_delete_list);
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    handles_.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue value;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &value));
      handles_.push_back(torch::stable::detail::to<AtenTensorHandle>(value));
    }
  }
  ~TensorList() {
    for (AtenTensorHandle handle : handles_) aoti_torch_delete_tensor_object(handle);
  }
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  int64_t size() const { return static_cast<int64_t>(handles_.size()); }
  auto begin() const { return handles_.begin(); }
  auto end() const { return handles_.end(); }

  torch::stable::Tensor tensor(int64_t n) const {
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handles_[n], &handle));
    return torch::stable::Tensor(handle);
  }

 private:
  TensorList() = default;
  std::vector<AtenTensorHandle> handles_;
};

}  // namespace sparsenn::bindings
