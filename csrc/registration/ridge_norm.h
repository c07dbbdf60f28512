// The norm of ridge nets, for both devices.
#pragma once

#include "math/ridge_norm.h"
#include "registration/spectral.h"

namespace sparsenn::bindings {

// Matrices as terms, and the row-major tensors that they point to.
class NormTerms {
 public:
  explicit NormTerms(const Tensor& model) : model_(model), dtype_(view_of(model).dtype) {}

  void add(const std::vector<Tensor>& matrices, NormKind kind, const char* name) {
    for (size_t n = 0; n < matrices.size(); ++n) {
      const Tensor& matrix = matrices[n];
      const Argument own{"ridge_norm", name, static_cast<int64_t>(n)};
      check_device(matrix, model_, own);
      const TensorView view = view_of(matrix);
      STD_TORCH_CHECK(view.dim == 2 && view.dtype == dtype_, own.text(), " is ", described(view),
                      "; it takes a matrix of ", name_of(dtype_), ", as the first is");
      kept_.push_back(row_major(matrix));
      terms_.push_back({kind, matrix.size(0), matrix.size(1), kept_.back().data_ptr(), nullptr});
    }
  }

  std::vector<Tensor> make_gradients() {
    std::vector<Tensor> made;
    for (size_t n = 0; n < kept_.size(); ++n) {
      made.push_back(empty(kept_[n], sizes_of(kept_[n])));
      terms_[n].grad = made.back().data_ptr();
    }
    return made;
  }

  const Tensor& model() const { return model_; }
  DType dtype() const { return dtype_; }
  const NormTerm* data() const { return terms_.data(); }
  int64_t size() const { return static_cast<int64_t>(terms_.size()); }

 private:
  Tensor model_;
  DType dtype_;
  std::vector<Tensor> kept_;
  std::vector<NormTerm> terms_;
};

inline ScalarType accumulator_of(DType dtype) {
  return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}

inline NormTerms terms_of(const std::vector<Tensor>& outers, const std::vector<Tensor>& inners,
                          const std::vector<Tensor>& skips) {
  STD_TORCH_CHECK(!outers.empty() || !inners.empty() || !skips.empty(), "sparsenn::ridge_norm: there is no matrix");
  NormTerms terms(!outers.empty() ? outers[0] : !inners.empty() ? inners[0] : skips[0]);
  terms.add(outers, NormKind::squared_columns, "outers");
  terms.add(inners, NormKind::squares, "inners");
  terms.add(skips, NormKind::magnitudes, "skips");
  return terms;
}

template <class Device>
Tensor ridge_norm_new(std::vector<Tensor> outers, std::vector<Tensor> inners, std::vector<Tensor> skips) {
  const NormTerms terms = terms_of(outers, inners, skips);
  const typename Device::Guard guard(terms.model());
  const Tensor total = torch::stable::new_empty(terms.model(), std::vector<int64_t>{}, accumulator_of(terms.dtype()));
  const int64_t bytes = ridge_norm_workspace<typename Device::Tag>(terms.data(), terms.size());
  const Tensor workspace = torch::stable::new_empty(terms.model(), std::vector<int64_t>{bytes}, ScalarType::Byte);
  ridge_norm<typename Device::Tag>(terms.dtype(), terms.data(), terms.size(), total.data_ptr(), workspace.data_ptr(),
                                   guard.stream());
  return total;
}

template <class Device>
std::vector<Tensor> ridge_norm_backward_new(Tensor grad, std::vector<Tensor> outers, std::vector<Tensor> inners,
                                            std::vector<Tensor> skips) {
  NormTerms terms = terms_of(outers, inners, skips);
  check_device(grad, terms.model(), {"ridge_norm_backward", "grad"});
  STD_TORCH_CHECK(grad.dim() == 0 && grad.scalar_type() == accumulator_of(terms.dtype()),
                  "sparsenn::ridge_norm_backward: grad is ", described(view_of(grad)),
                  "; it takes a 0-d tensor of the norm's dtype");
  const typename Device::Guard guard(grad);
  std::vector<Tensor> made = terms.make_gradients();
  ridge_norm_backward<typename Device::Tag>(terms.dtype(), terms.data(), terms.size(), grad.data_ptr(), guard.stream());
  return made;
}

template <class Device>
void implement_ridge_norm(torch::stable::detail::StableLibrary& m) {
  m.impl("ridge_norm", TORCH_BOX(&ridge_norm_new<Device>));
  m.impl("ridge_norm_backward", TORCH_BOX(&ridge_norm_backward_new<Device>));
}

}  // namespace sparsenn::bindings
