// Tensors in host memory with any strides, filled from a seed, for tests of the launchers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "launchers.h"
#include "math/scalar.h"

namespace sparsenn::test {

template <class T>
constexpr DType kDType = std::is_same_v<T, double>     ? DType::float64
                         : std::is_same_v<T, float>    ? DType::float32
                         : std::is_same_v<T, bfloat16> ? DType::bfloat16
                                                       : DType::float16;

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

using Shape = std::vector<int64_t>;

inline int64_t numel_of(const Shape& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

// Strides of a tensor whose dimensions lie in memory in the given order, outermost first.
inline Shape strides_of(const Shape& sizes, const Shape& order) {
  Shape strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = stride;
    stride *= std::max<int64_t>(sizes[order[i]], 1);
  }
  return strides;
}

inline Shape row_major(const Shape& sizes) {
  Shape order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  return strides_of(sizes, order);
}

// Owns its memory, with guard elements around it that no kernel may touch.
template <class T>
class Tensor {
 public:
  // `shift`: elements by which the data miss their alignment.
  Tensor(Shape sizes, Shape strides, int64_t shift = 0) : sizes_(std::move(sizes)), strides_(std::move(strides)) {
    int64_t last = 0;
    for (size_t i = 0; i < sizes_.size(); ++i) last += std::max<int64_t>(sizes_[i] - 1, 0) * strides_[i];
    memory_.resize(last + 1 + shift + 2 * kGuard);
    // A vector's memory is aligned to 16 bytes, and so is what comes behind the guard.
    begin_ = kGuard + shift;
  }
  explicit Tensor(const Shape& sizes) : Tensor(sizes, row_major(sizes)) {}

  // Values around 0, some of them exactly 0. Two tensors of one shape and seed are equal, whatever their strides.
  Tensor& fill(uint64_t seed) {
    for (T& x : memory_) x = T{};
    std::mt19937_64 random(seed);
    for (int64_t i = 0, n = numel(); i < n; ++i) {
      const double value = 2.6 * (static_cast<double>(random() >> 11) * 0x1p-53 - 0.5);
      at(i) = store<T>(static_cast<accumulator_t<T>>(random() % 5 ? value : 0.0));
    }
    return *this;
  }

  int64_t numel() const { return numel_of(sizes_); }

  // The i-th element in row-major order of the indices.
  T& at(int64_t i) {
    int64_t offset = begin_;
    for (size_t d = sizes_.size(); d-- > 0;) {
      offset += i % sizes_[d] * strides_[d];
      i /= sizes_[d];
    }
    return memory_[offset];
  }

  TensorView view() {
    return {memory_.data() + begin_, kDType<T>,      numel(), static_cast<int64_t>(sizes_.size()),
            sizes_.data(),           strides_.data()};
  }

  // Elements in row-major order.
  std::vector<T> values() {
    std::vector<T> all;
    for (int64_t i = 0, n = numel(); i < n; ++i) all.push_back(at(i));
    return all;
  }

  // All memory, gaps and guards too.
  const std::vector<T>& memory() const { return memory_; }

 private:
  static constexpr int64_t kGuard = 32;
  Shape sizes_, strides_;
  int64_t begin_;
  std::vector<T> memory_;
};

template <class T>
std::vector<TensorView> views_of(std::vector<Tensor<T>>& tensors) {
  std::vector<TensorView> views;
  for (Tensor<T>& tensor : tensors) views.push_back(tensor.view());
  return views;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The layouts that every launcher is tested in.
struct Form {
  const char* name;
  Shape sizes;
  std::vector<Shape> strides;  // of the first operand (that which is written), and of the others in turn
  int64_t shift = 0;
};

inline std::vector<Form> forms() {
  const Shape image{3, 5, 4, 6};
  const Shape nchw = row_major(image), nhwc = strides_of(image, {0, 2, 3, 1});
  return {
      {"0-d", {}, {{}}},
      {"empty", {4, 0, 3}, {row_major({4, 0, 3})}},
      {"one", {1, 1}, {{1, 1}, {7, 3}}},
      {"odd", {13}, {{1}}},
      {"flat", {37, 91}, {{91, 1}}},
      {"chunks", {4096 + 3}, {{1}}},
      {"misaligned", {4099}, {{1}}, 1},
      {"transposed alike", {37, 91}, {{1, 37}}},
      {"transposed", {37, 91}, {{91, 1}, {1, 37}}},
      {"transposed output", {37, 91}, {{1, 37}, {91, 1}}},
      {"channels last alike", image, {nhwc}},
      {"channels last", image, {nchw, nhwc}},
      {"channels last output", image, {nhwc, nchw, nhwc}},
      {"gaps", {9, 50}, {{64, 1}}},
      {"steps", {700}, {{3}, {1}, {2}}},
      {"expanded input", {37, 91}, {{91, 1}, {0, 1}, {1, 0}, {0, 0}}},
      {"many dimensions",
       Shape(11, 2),
       {row_major(Shape(11, 2)), strides_of(Shape(11, 2), {0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9})}},
      {"blocks", {5, 2048 + 7}, {{2055, 1}, {1, 5}}},
  };
}

// The operands' strides in a form: those that are written all have one that does not overlap itself.
inline const Shape& output_strides(const Form& form) { return form.strides[0]; }
inline const Shape& input_strides(const Form& form, int64_t k) {
  return form.strides.size() == 1 ? form.strides[0] : form.strides[1 + k % (form.strides.size() - 1)];
}

}  // namespace sparsenn::test
