// A linear layer or a convolution: the same rows of weights at one place, or at many.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/memory.h"

namespace sparsenn::runtime {

struct Shape {
  int64_t channels = 1, height = 1, width = 1;
  int64_t size() const { return channels * height * width; }
  bool operator==(const Shape&) const = default;
};

struct Window {
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
};

// Weights by rows, one an output channel; a column is a tap: (channel, row of the kernel, column of the kernel).
struct Weights {
  std::vector<int32_t> starts, columns;
  std::vector<float> values, bias;
  int64_t rows() const { return static_cast<int64_t>(bias.size()); }
};

enum class Method { sparse, dense };

// For one sample, for a few that lie one after the other (a convolution takes them as one), for panels.
struct Methods {
  Method one, few, panel;
};

class Product {
 public:
  // `index` renumbers the input of a linear layer in panels: column index[i] is their feature i.
  Product(Weights weights, Shape in, const Window& window, bool relu, Methods methods,
          const std::vector<int32_t>& index);

  // x holds in.size() floats for each of `count` samples, or that many times `lanes` in a panel. `external` memory is
  // not read beyond its end.
  void run_samples(const float* x, bool external, int64_t count, float* out, float* scratch) const;
  void run_panel(const float* x, int64_t lanes, float* out, float* scratch) const;

  Shape in() const { return in_; }
  Shape out() const { return out_; }
  int64_t scratch_samples(int64_t count) const;
  int64_t scratch_panel(int64_t lanes) const;

 private:
  // Weights for the register tiles: of each tile of rows, column by column; columns that are all zero are left out.
  struct Packed {
    std::vector<int32_t> offsets;  // of each column
    Floats weights, bias;
    int64_t padded = 0;  // rows, with those that fill the last tile
  };

  void build_quads();
  void build_strips();
  Packed pack(const std::vector<int32_t>& offsets) const;
  bool linear() const {
    return in_.size() == in_.channels && out_.size() == out_.channels && taps_ == in_.channels && !bordered();
  }
  bool bordered() const { return window_.padding[0] || window_.padding[1]; }
  bool copies() const { return bordered() || window_.stride[0] > 1 || window_.stride[1] > 1; }
  void run_quads(const float* x, float* out) const;
  void run_strips(const float* x, int64_t count, float* out, float* scratch) const;
  void run_image(const float* x, bool external, float* out, float* scratch) const;
  void lay_out_one(const float* x, float* image) const;
  void lay_out_panel(const float* x, int64_t lanes, float* image) const;
  // Sums of all rows for a run of lanes that begins at x; b is room for packed inputs.
  void dense(const Packed& packed, const float* x, int64_t scale, int64_t lanes, float* out, int64_t out_stride,
             float* b) const;

  Weights weights_;
  Shape in_, out_;
  Window window_;
  bool relu_;
  Methods methods_;
  int64_t taps_;
  Shape padded_, phase_;  // of the input: with its border; one of the stride's phases of it
  std::vector<int32_t> one_offsets_, panel_offsets_;
  Packed packed_one_, packed_panel_;
  // One sample of a linear layer, sparse.
  std::vector<int32_t> quad_starts_, quad_wide_, quad_rows_;
  std::vector<uint16_t> quad_narrow_;
  std::vector<float> quad_values_, quad_bias_;
  // A few samples of one, dense: of strips of its rows, column by column; columns that are all zero are left out.
  std::vector<int32_t> used_;
  Floats strips_, strip_bias_;
};

}  // namespace sparsenn::runtime
