// The spectral operators as torch calls them, for both devices.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "registration/checks.h"

namespace sparsenn::bindings {

using Vector = std::optional<Tensor>;

// Bits of `wanted`.
enum Wanted : int64_t { kPhi = 1, kLambdaIn = 2, kLambdaOut = 4, kInput = 8, kBias = 16 };

inline void check_vector(const Tensor& vector, int64_t size, const Tensor& phi, const Argument& argument) {
  check_device(vector, phi, argument);
  STD_TORCH_CHECK(vector.dim() == 1 && vector.sizes()[0] == size && vector.scalar_type() == phi.scalar_type(),
                  argument.text(), " is ", described(view_of(vector)), "; it takes ", size, " numbers of phi's dtype, ",
                  name_of(view_of(phi).dtype));
}

// Itself where it is row-major already, which spares a call of the dispatcher.
inline Tensor row_major(const Tensor& tensor) {
  return is_contiguous(view_of(tensor)) ? tensor : torch::stable::contiguous(tensor);
}

// Row-major, on the device of `like` and in its dtype. Straight from the allocator: new_empty calls the dispatcher.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(1, sizes[i]);
  int32_t dtype, device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, device_type, device_index, &made));
  return Tensor(made);
}

inline Tensor empty_or_none(const Tensor& like, bool wanted, std::vector<int64_t> sizes) {
  return empty(like, wanted ? std::move(sizes) : std::vector<int64_t>{0});
}

inline void* data_or_null(const Tensor& tensor, bool wanted) { return wanted ? tensor.data_ptr() : nullptr; }

// A checked spectrum, and the row-major tensors that it points to.
struct CheckedSpectrum {
  Tensor phi;
  Vector lambda_in, lambda_out;
  Spectrum view;

  CheckedSpectrum(const char* op, const Tensor& eigenvectors, const Vector& in, const Vector& out)
      : phi(row_major(eigenvectors)) {
    STD_TORCH_CHECK(phi.dim() >= 2, "sparsenn::", op, ": phi has ", phi.dim(), " dimensions; it takes two or more");
    STD_TORCH_CHECK(in.has_value() || out.has_value(), "sparsenn::", op,
                    ": both eigenvalues are absent; one of them is needed");
    const auto sizes = phi.sizes();
    int64_t kernel = 1;
    for (int64_t i = 2; i < phi.dim(); ++i) kernel *= sizes[i];
    if (in) check_vector(*in, sizes[1], phi, {op, "lambda_in"}), lambda_in = row_major(*in);
    if (out) check_vector(*out, sizes[0], phi, {op, "lambda_out"}), lambda_out = row_major(*out);
    view = {view_of(phi).dtype,
            sizes[0],
            sizes[1],
            kernel,
            phi.data_ptr(),
            lambda_in ? lambda_in->data_ptr() : nullptr,
            lambda_out ? lambda_out->data_ptr() : nullptr};
  }

  // Only what is there has a gradient.
  int64_t available(int64_t wanted) const {
    return wanted & ~((lambda_in ? 0 : kLambdaIn) | (lambda_out ? 0 : kLambdaOut));
  }
};

// `made` in the layout of `like`; made is row-major.
inline Tensor in_layout_of(const Tensor& like, const Tensor& made) {
  if (is_contiguous(view_of(like))) return made;
  Tensor result = torch::stable::empty_like(like);
  torch::stable::copy_(result, made);
  return result;
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

template <class Device>
Tensor compose(const CheckedSpectrum& spectrum, void* stream) {
  Tensor weight = empty(spectrum.phi, sizes_of(spectrum.phi));
  if (weight.numel()) spectral_weight<typename Device::Tag>(spectrum.view, weight.data_ptr(), stream);
  return weight;
}

template <class Device>
Tensor spectral_weight_new(Tensor phi, Vector lambda_in, Vector lambda_out) {
  const CheckedSpectrum spectrum("spectral_weight", phi, lambda_in, lambda_out);
  const typename Device::Guard guard(phi);
  return in_layout_of(phi, compose<Device>(spectrum, guard.stream()));
}

template <class Device>
Tensor workspace_of(const CheckedSpectrum& spectrum) {
  return torch::stable::new_empty(spectrum.phi,
                                  std::vector<int64_t>{spectral_weight_workspace<typename Device::Tag>(spectrum.view)},
                                  ScalarType::Byte);
}

// grad becomes the gradient of phi where that is `in_place`.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> backward_weight(const Tensor& grad, const CheckedSpectrum& spectrum, int64_t wanted,
                                                   bool in_place, void* stream) {
  wanted = spectrum.available(wanted);
  const Spectrum& view = spectrum.view;
  Tensor phi = in_place && (wanted & kPhi) ? grad : empty_or_none(spectrum.phi, wanted & kPhi, sizes_of(spectrum.phi));
  Tensor in = empty_or_none(spectrum.phi, wanted & kLambdaIn, {view.in});
  Tensor out = empty_or_none(spectrum.phi, wanted & kLambdaOut, {view.out});
  const SpectralGradients gradients{data_or_null(phi, wanted & kPhi), data_or_null(in, wanted & kLambdaIn),
                                    data_or_null(out, wanted & kLambdaOut), nullptr, nullptr};
  const Tensor workspace = workspace_of<Device>(spectrum);
  spectral_weight_backward<typename Device::Tag>(grad.data_ptr(), view, gradients, workspace.data_ptr(), stream);
  return {phi, in, out};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> spectral_weight_backward_new(Tensor grad, Tensor phi, Vector lambda_in,
                                                                Vector lambda_out, int64_t wanted) {
  const char* const op = "spectral_weight_backward";
  const CheckedSpectrum spectrum(op, phi, lambda_in, lambda_out);
  check_device(grad, phi, {op, "grad"});
  check_like(view_of(grad), view_of(phi), view_of(phi).dtype, {op, "grad"}, "phi");
  const typename Device::Guard guard(phi);
  auto [d_phi, d_in, d_out] = backward_weight<Device>(row_major(grad), spectrum, wanted, false, guard.stream());
  return {wanted & kPhi ? in_layout_of(phi, d_phi) : d_phi, d_in, d_out};
}

// A tensor that is written in row-major order: itself, or a copy that is brought back.
class Place {
 public:
  explicit Place(const Tensor& given) : given_(given), own_(row_major(given)) {}
  void* data() const { return own_.data_ptr(); }
  void bring_back() {
    if (!is_contiguous(view_of(given_))) torch::stable::copy_(given_, own_);
  }

 private:
  Tensor given_, own_;
};

template <class Device>
void spectral_weight_backward_in_place(Tensor grad, Tensor phi, Vector lambda_in, Vector lambda_out, Vector d_lambda_in,
                                       Vector d_lambda_out) {
  const char* const op = "spectral_weight_backward_";
  const CheckedSpectrum spectrum(op, phi, lambda_in, lambda_out);
  STD_TORCH_CHECK((lambda_in || !d_lambda_in) && (lambda_out || !d_lambda_out),
                  "sparsenn::spectral_weight_backward_: an eigenvalue that is absent has no gradient");
  check_device(grad, phi, {op, "grad"});
  check_like(view_of(grad), view_of(phi), view_of(phi).dtype, {op, "grad"}, "phi");
  if (d_lambda_in) check_vector(*d_lambda_in, spectrum.view.in, phi, {op, "d_lambda_in"});
  if (d_lambda_out) check_vector(*d_lambda_out, spectrum.view.out, phi, {op, "d_lambda_out"});
  std::vector<std::pair<const char*, TensorView>> met{{"phi", view_of(phi)}};
  if (lambda_in) met.emplace_back("lambda_in", view_of(*lambda_in));
  if (lambda_out) met.emplace_back("lambda_out", view_of(*lambda_out));
  const Vector written[3] = {grad, d_lambda_in, d_lambda_out};
  const char* const names[3] = {"grad", "d_lambda_in", "d_lambda_out"};
  for (int k = 0; k < 3; ++k) {
    if (!written[k]) continue;
    const TensorView own = view_of(*written[k]);
    const Argument argument{op, names[k]};
    check_writable(own, argument);
    for (const auto& [name, other] : met) {
      STD_TORCH_CHECK(!share_memory(own, other), argument.text(), " is written but shares memory with ", name,
                      "; it takes a tensor of its own");
    }
    met.emplace_back(names[k], own);
  }
  const typename Device::Guard guard(phi);
  std::optional<Place> places[3];
  void* data[3] = {};
  for (int k = 0; k < 3; ++k) {
    if (written[k]) data[k] = places[k].emplace(*written[k]).data();
  }
  const Tensor workspace = workspace_of<Device>(spectrum);
  spectral_weight_backward<typename Device::Tag>(data[0], spectrum.view, {data[0], data[1], data[2], nullptr, nullptr},
                                                 workspace.data_ptr(), guard.stream());
  for (auto& place : places) {
    if (place) place->bring_back();
  }
}

// How many rows of `columns` numbers a tensor has, whatever its leading dimensions.
inline int64_t rows_of(const Tensor& tensor, int64_t columns, const Tensor& phi, const Argument& argument) {
  check_device(tensor, phi, argument);
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(tensor.dim() > 0 && sizes[tensor.dim() - 1] == columns && tensor.scalar_type() == phi.scalar_type(),
                  argument.text(), " is ", described(view_of(tensor)), "; it takes (..., ", columns,
                  ") in phi's dtype, ", name_of(view_of(phi).dtype));
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) rows *= sizes[i];
  return rows;
}

template <class Device>
Tensor spectral_linear_new(Tensor input, Tensor phi, Vector lambda_in, Vector lambda_out, Vector bias) {
  const char* const op = "spectral_linear";
  STD_TORCH_CHECK(phi.dim() == 2, "sparsenn::spectral_linear: phi has ", phi.dim(), " dimensions; it takes two");
  const CheckedSpectrum spectrum(op, phi, lambda_in, lambda_out);
  const int64_t rows = rows_of(input, spectrum.view.in, phi, {op, "input"});
  if (bias) check_vector(*bias, spectrum.view.out, phi, {op, "bias"}), bias = row_major(*bias);
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.back() = spectrum.view.out;
  const typename Device::Guard guard(phi);
  return Device::linear(row_major(input), rows, spectrum, bias, sizes, guard.stream());
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spectral_linear_backward_new(Tensor grad, Tensor input, Tensor phi,
                                                                                Vector lambda_in, Vector lambda_out,
                                                                                int64_t wanted) {
  const char* const op = "spectral_linear_backward";
  STD_TORCH_CHECK(phi.dim() == 2, "sparsenn::spectral_linear_backward: phi has ", phi.dim(),
                  " dimensions; it takes two");
  const CheckedSpectrum spectrum(op, phi, lambda_in, lambda_out);
  const int64_t rows = rows_of(input, spectrum.view.in, phi, {op, "input"});
  const int64_t given = rows_of(grad, spectrum.view.out, phi, {op, "grad"});
  STD_TORCH_CHECK(rows == given, "sparsenn::spectral_linear_backward: grad has ", given, " rows, input ", rows,
                  "; they must agree");
  const typename Device::Guard guard(phi);
  auto [d_phi, d_in, d_out, d_input, d_bias] = Device::linear_backward(
      row_major(grad), row_major(input), rows, spectrum, spectrum.available(wanted), guard.stream());
  return {d_phi, d_in, d_out, d_input, d_bias};
}

template <class Device>
void implement_spectral(torch::stable::detail::StableLibrary& m) {
  m.impl("spectral_weight", TORCH_BOX(&spectral_weight_new<Device>));
  m.impl("spectral_weight_backward", TORCH_BOX(&spectral_weight_backward_new<Device>));
  m.impl("spectral_weight_backward_", TORCH_BOX(&spectral_weight_backward_in_place<Device>));
  m.impl("spectral_linear", TORCH_BOX(&spectral_linear_new<Device>));
  m.impl("spectral_linear_backward", TORCH_BOX(&spectral_linear_backward_new<Device>));
}

}  // namespace sparsenn::bindings
