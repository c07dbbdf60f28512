// What lies between the products of a network.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "runtime/network.h"

namespace sparsenn::runtime {

class ProductStep : public Step {
 public:
  explicit ProductStep(Product product) : product_(std::move(product)) {}
  void run(const float* const* in, bool external, const Batch& batch, float* out, float* scratch) const override {
    if (batch.lanes == 1) {
      product_.run_samples(in[0], external, batch.count, out, scratch);
    } else {
      product_.run_panel(in[0], batch.lanes, out, scratch);
    }
  }
  int64_t scratch(const Batch& batch) const override {
    return batch.lanes == 1 ? product_.scratch_samples(batch.count) : product_.scratch_panel(batch.lanes);
  }

 private:
  Product product_;
};

class SumStep : public Step {
 public:
  SumStep(int64_t size, bool relu) : size_(size), relu_(relu) {}
  void run(const float* const* in, bool, const Batch& batch, float* out, float*) const override {
    add(in[0], in[1], size_ * batch.size(), out, relu_);
  }

 private:
  int64_t size_;
  bool relu_;
};

class ReluStep : public Step {
 public:
  explicit ReluStep(int64_t size) : size_(size) {}
  void run(const float* const* in, bool, const Batch& batch, float* out, float*) const override {
    relu(in[0], size_ * batch.size(), out);
  }

 private:
  int64_t size_;
};

class CurveStep : public Step {
 public:
  CurveStep(int64_t size, Curve curve) : size_(size), curve_(curve) {}
  void run(const float* const* in, bool, const Batch& batch, float* out, float*) const override {
    apply(curve_, in[0], size_ * batch.size(), out);
  }

 private:
  int64_t size_;
  Curve curve_;
};

class AffineStep : public Step {
 public:
  AffineStep(int64_t area, std::vector<float> scale, std::vector<float> shift, bool relu)
      : area_(area), scale_(std::move(scale)), shift_(std::move(shift)), relu_(relu) {}
  void run(const float* const* in, bool, const Batch& batch, float* out, float*) const override {
    const int64_t size = area_ * batch.lanes, channels = scale_.size();
    for (int64_t c = 0; c < channels * batch.count; ++c)
      affine(in[0] + c * size, size, scale_[c % channels], shift_[c % channels], out + c * size, relu_);
  }

 private:
  int64_t area_;
  std::vector<float> scale_, shift_;
  bool relu_;
};

class PoolStep : public Step {
 public:
  PoolStep(Shape in, bool average, Spans rows, Spans columns)
      : in_(in), average_(average), rows_(std::move(rows)), columns_(std::move(columns)) {}
  void run(const float* const* in, bool, const Batch& batch, float* out, float* scratch) const override {
    const int64_t area = rows_.begin.size() * columns_.begin.size(), lanes = batch.lanes;
    for (int64_t c = 0; c < in_.channels * batch.count; ++c) {
      pool(in[0] + c * in_.height * in_.width * lanes, in_.width, lanes, average_, rows_, columns_, scratch,
           out + c * area * lanes);
    }
  }
  int64_t scratch(const Batch& batch) const override { return in_.width * batch.lanes; }

 private:
  Shape in_;
  bool average_;
  Spans rows_, columns_;
};

class SoftmaxStep : public Step {
 public:
  explicit SoftmaxStep(Shape in) : in_(in) {}
  void run(const float* const* in, bool, const Batch& batch, float* out, float*) const override {
    const int64_t stride = in_.height * in_.width * batch.lanes;
    for (int64_t i = 0; i < stride * batch.count; ++i) {
      const int64_t first = i / stride * in_.channels * stride + i % stride;
      const float* x = in[0] + first;
      float *y = out + first, largest = x[0], sum = 0;
      for (int64_t c = 1; c < in_.channels; ++c) largest = std::max(largest, x[c * stride]);
      for (int64_t c = 0; c < in_.channels; ++c) sum += y[c * stride] = std::exp(x[c * stride] - largest);
      for (int64_t c = 0; c < in_.channels; ++c) y[c * stride] /= sum;
    }
  }

 private:
  Shape in_;
};

}  // namespace sparsenn::runtime
