#include "runtime/product.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cpu/tiles.h"
#include "runtime/layers.h"
#include "runtime/panel.h"
#include "runtime/sparse_rows.h"

namespace sparsenn::runtime {
namespace {

constexpr int64_t kChunk = 64;     // pixels of one sample that are computed together
constexpr int64_t kMostRows = 16;  // of a register tile

int64_t round_up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

int64_t places(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// The widest run of lanes that the tiles take, at most `lanes`.
int64_t tile_width(int64_t lanes) {
  const auto& tiles = cpu::tiles<float>();
  return lanes >= tiles.width() ? tiles.width() : tiles.lanes;
}

}  // namespace

Product::Product(Weights weights, Shape in, const Window& window, bool relu, Methods methods,
                 const std::vector<int32_t>& index)
    : weights_(std::move(weights)), in_(in), window_(window), relu_(relu), methods_(methods) {
  const auto& [kernel, stride, padding, dilation] = window_;
  for (int i = 0; i < 2; ++i) {
    if (kernel[i] < 1 || stride[i] < 1 || padding[i] < 0 || dilation[i] < 1)
      throw std::invalid_argument("a window has a size that is not positive");
  }
  taps_ = in.channels * kernel[0] * kernel[1];
  out_ = {weights_.rows(), places(in.height, kernel[0], stride[0], padding[0], dilation[0]),
          places(in.width, kernel[1], stride[1], padding[1], dilation[1])};
  if (out_.height < 1 || out_.width < 1) throw std::invalid_argument("a window is larger than its input");
  const auto& starts = weights_.starts;
  if (static_cast<int64_t>(starts.size()) != weights_.rows() + 1 || starts.front() != 0 ||
      !std::is_sorted(starts.begin(), starts.end()) || starts.back() != static_cast<int64_t>(weights_.values.size()) ||
      weights_.columns.size() != weights_.values.size())
    throw std::invalid_argument("rows of weights do not fit together");
  for (int32_t column : weights_.columns) {
    if (column < 0 || column >= taps_) throw std::invalid_argument("a weight lies outside of its matrix");
  }
  padded_ = {in.channels, in.height + 2 * padding[0], in.width + 2 * padding[1]};
  phase_ = {in.channels, (padded_.height + stride[0] - 1) / stride[0], (padded_.width + stride[1] - 1) / stride[1]};
  if (in.channels * stride[0] * stride[1] * phase_.height * phase_.width > INT32_MAX / kPanel)
    throw std::invalid_argument("an activation is too large");
  std::vector<int32_t> place_one(taps_), place_panel(taps_);
  for (int64_t tap = 0; tap < taps_; ++tap) {
    const int64_t channel = tap / (kernel[0] * kernel[1]);
    const int64_t y = tap / kernel[1] % kernel[0] * dilation[0], x = tap % kernel[1] * dilation[1];
    const int64_t plane = (channel * stride[0] + y % stride[0]) * stride[1] + x % stride[1];
    place_one[tap] = (plane * phase_.height + y / stride[0]) * phase_.width + x / stride[1];
    place_panel[tap] = (channel * padded_.height + y) * padded_.width + x;
  }
  if (!index.empty()) {
    std::fill(place_panel.begin(), place_panel.end(), -1);
    for (size_t i = 0; i < index.size(); ++i) place_panel.at(index[i]) = i;
  }
  for (int32_t column : weights_.columns) {
    if (place_panel[column] < 0) throw std::invalid_argument("a weight meets an input that the index leaves out");
    one_offsets_.push_back(place_one[column]);
    panel_offsets_.push_back(place_panel[column]);
  }
  const auto& [one, few, panel] = methods_;
  if (linear()) {
    if (one == Method::sparse || few == Method::sparse) build_quads();
    if (one == Method::dense || few == Method::dense) build_strips();
  } else if (one == Method::dense) {
    packed_one_ = pack(one_offsets_);
  }
  if (panel == Method::dense) packed_panel_ = pack(panel_offsets_);
}

// Rows by length, in fours. The rows of a quad are padded to the longest of it by weights of 0 on what that one reads.
void Product::build_quads() {
  const int64_t count = weights_.rows();
  const auto& starts = weights_.starts;
  const auto length = [&](int32_t row) { return starts[row + 1] - starts[row]; };
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  const bool narrow = taps_ <= UINT16_MAX + 1;
  quad_starts_.push_back(0);
  for (int64_t q = 0; q < count; q += 4) {
    const int32_t longest = length(order[q]);
    for (int64_t i = q; i < q + 4; ++i) {
      const int32_t row = order[std::min(i, count - 1)];
      quad_rows_.push_back(row);
      quad_bias_.push_back(weights_.bias[row]);
    }
    for (int32_t k = 0; k < longest; ++k) {
      for (int64_t i = 0; i < 4; ++i) {
        const int32_t row = quad_rows_[q + i], at = starts[row] + k;
        const bool here = k < length(row);
        // a row that has no further weight repeats a column that is read anyway
        const int32_t column = here ? weights_.columns[at] : weights_.columns[starts[order[q]] + k];
        narrow ? quad_narrow_.push_back(column) : quad_wide_.push_back(column);
        quad_values_.push_back(here ? weights_.values[at] : 0.0f);
      }
    }
    quad_starts_.push_back(quad_starts_.back() + longest);
  }
}

void Product::build_strips() {
  std::vector<int32_t> number(taps_, -1);
  for (int32_t column : weights_.columns) number[column] = 0;
  for (int64_t tap = 0; tap < taps_; ++tap) {
    if (number[tap] < 0) continue;
    number[tap] = used_.size();
    used_.push_back(tap);
  }
  const auto& tiles = cpu::tiles<float>();
  const int64_t depth = used_.size(), padded = tiles.padded(weights_.rows());
  strips_ = Floats(padded * depth);
  strip_bias_ = Floats(padded);
  std::copy(weights_.bias.begin(), weights_.bias.end(), strip_bias_.get());
  for (int64_t row = 0; row < weights_.rows(); ++row) {
    const int64_t first = row / tiles.width() * tiles.width(), width = tile_width(padded - first);
    float* strip = strips_.get() + first * depth + row - first;
    for (int32_t k = weights_.starts[row]; k < weights_.starts[row + 1]; ++k)
      strip[number[weights_.columns[k]] * width] += weights_.values[k];
  }
}

Product::Packed Product::pack(const std::vector<int32_t>& offsets) const {
  Packed packed;
  packed.offsets = offsets;
  std::sort(packed.offsets.begin(), packed.offsets.end());
  packed.offsets.erase(std::unique(packed.offsets.begin(), packed.offsets.end()), packed.offsets.end());
  const auto& tiles = cpu::tiles<float>();
  const int64_t count = weights_.rows(), depth = packed.offsets.size();
  packed.padded = count ? (count - 1) / tiles.rows() * tiles.rows() : 0;
  if (count) packed.padded += tiles.with(count - packed.padded).rows;
  packed.weights = Floats(packed.padded * depth);
  packed.bias = Floats(packed.padded);
  for (int64_t first = 0; first < count;) {
    const int64_t rows = tiles.with(std::min(count - first, tiles.rows())).rows;
    for (int64_t row = first; row < std::min(first + rows, count); ++row) {
      packed.bias.get()[row] = weights_.bias[row];
      for (int32_t k = weights_.starts[row]; k < weights_.starts[row + 1]; ++k) {
        const auto at = std::lower_bound(packed.offsets.begin(), packed.offsets.end(), offsets[k]);
        packed.weights.get()[first * depth + (at - packed.offsets.begin()) * rows + row - first] += weights_.values[k];
      }
    }
    first += rows;
  }
  return packed;
}

void Product::dense(const Packed& packed, const float* x, int64_t scale, int64_t lanes, float* out, int64_t out_stride,
                    float* b) const {
  const auto& tiles = cpu::tiles<float>();
  const int64_t depth = packed.offsets.size(), count = weights_.rows(), width = tile_width(lanes);
  alignas(64) float sums[kMostRows * 64];
  for (int64_t lane = 0; lane < lanes; lane += width) {
    for (int64_t k = 0; k < depth; ++k)
      std::memcpy(b + k * width, x + packed.offsets[k] * scale + lane, width * sizeof(float));
    for (int64_t first = 0; first < count;) {
      const auto& tile = tiles.with(std::min(count - first, tiles.rows()));
      for (int64_t m = 0; m < tile.rows; ++m) std::fill_n(sums + m * width, width, packed.bias.get()[first + m]);
      // nothing to fetch ahead: the weights of a layer lie in the cache, and so does b
      tile.by_column[width / tiles.lanes - 1](depth, packed.weights.get() + first * depth, b, sums, width,
                                              cpu::Ahead::none(b));
      for (int64_t m = 0; m < std::min(tile.rows, count - first); ++m) {
        float* to = out + (first + m) * out_stride + lane;
        relu_ ? relu(sums + m * width, width, to) : void(std::memcpy(to, sums + m * width, width * sizeof(float)));
      }
      first += tile.rows;
    }
  }
}

int64_t Product::scratch_samples(int64_t count) const {
  if (linear()) return round_up(used_.size(), cpu::kDepth) * (count + kMostRows);
  const int64_t image = window_.stride[0] * window_.stride[1] * phase_.size() + kSlack;
  return image + weights_.rows() * kChunk + (methods_.one == Method::dense ? packed_one_.offsets.size() * kChunk : 0);
}

int64_t Product::scratch_panel(int64_t lanes) const {
  return (bordered() ? padded_.size() * lanes : 0) +
         (methods_.panel == Method::dense ? packed_panel_.offsets.size() * lanes : 0);
}

// The input in its border of zeros, one plane for each phase of the stride, so that all pixels that a tap meets lie one
// after the other.
void Product::lay_out_one(const float* x, float* image) const {
  const auto& [kernel, stride, padding, dilation] = window_;
  const bool whole = stride[1] == 1;
  if (copies()) std::fill_n(image, stride[0] * stride[1] * phase_.size(), 0.0f);
  for (int64_t channel = 0; channel < in_.channels; ++channel) {
    if (stride[0] == 1 && whole) {
      copy_runs(in_.height, x + channel * in_.height * in_.width, in_.width, in_.width,
                image + (channel * phase_.height + padding[0]) * phase_.width + padding[1], phase_.width);
      continue;
    }
    for (int64_t y = 0; y < in_.height; ++y) {
      const int64_t row = y + padding[0];
      const float* from = x + (channel * in_.height + y) * in_.width;
      for (int64_t phase = 0; phase < stride[1]; ++phase) {
        const int64_t plane = (channel * stride[0] + row % stride[0]) * stride[1] + phase;
        float* to = image + (plane * phase_.height + row / stride[0]) * phase_.width;
        if (whole) {
          std::copy_n(from, in_.width, to + padding[1]);
        } else {
          const int64_t first = ((phase - padding[1]) % stride[1] + stride[1]) % stride[1];
          for (int64_t i = first; i < in_.width; i += stride[1]) to[(i + padding[1]) / stride[1]] = from[i];
        }
      }
    }
  }
}

void Product::lay_out_panel(const float* x, int64_t lanes, float* image) const {
  std::fill_n(image, padded_.size() * lanes, 0.0f);
  for (int64_t channel = 0; channel < in_.channels; ++channel) {
    for (int64_t y = 0; y < in_.height; ++y) {
      const int64_t row = (channel * padded_.height + y + window_.padding[0]) * padded_.width + window_.padding[1];
      std::copy_n(x + (channel * in_.height + y) * in_.width * lanes, in_.width * lanes, image + row * lanes);
    }
  }
}

void Product::run_samples(const float* x, bool external, int64_t count, float* out, float* scratch) const {
  if (linear() && (count == 1 ? methods_.one : methods_.few) == Method::dense) {
    run_strips(x, count, out, scratch);
    return;
  }
  for (int64_t s = 0; s < count; ++s, x += in_.size(), out += out_.size())
    linear() ? run_quads(x, out) : run_image(x, external, out, scratch);
}

void Product::run_quads(const float* x, float* out) const {
  const bool narrow = quad_wide_.empty();
  sparse_one({static_cast<int64_t>(quad_starts_.size()) - 1, quad_starts_.data(), quad_values_.data(),
              narrow ? quad_narrow_.data() : nullptr, quad_wide_.data(), quad_rows_.data(), quad_bias_.data()},
             x, out, relu_);
}

// Tiles of a few samples and a strip of outputs. A strip's weights come from memory once, for all samples.
void Product::run_strips(const float* x, int64_t count, float* out, float* scratch) const {
  const auto& tiles = cpu::tiles<float>();
  const int64_t depth = used_.size(), rows = weights_.rows(), room = count + kMostRows;
  for (int64_t s = 0; s < count; ++s) {
    const float* from = x + s * taps_;
    for (int64_t begin = 0; begin < depth; begin += cpu::kDepth) {
      const int64_t size = std::min(cpu::kDepth, depth - begin);
      float* to = scratch + begin * room + s * cpu::kDepth;
      if (depth == taps_) {
        std::copy_n(from + begin, size, to);
      } else {
        for (int64_t k = 0; k < size; ++k) to[k] = from[used_[begin + k]];
      }
    }
  }
  alignas(64) float sums[kMostRows * 64];
  for (int64_t first = 0; first < rows; first += tiles.width()) {
    const int64_t left = rows - first, width = tile_width(tiles.padded(left)), size = std::min(width, left);
    const float* strip = strips_.get() + first * depth;
    for (int64_t s = 0; s < count; s += tiles.rows()) {
      const auto& tile = tiles.with(std::min(count - s, tiles.rows()));
      const int64_t samples = std::min(count - s, tile.rows);
      copy_runs(samples, strip_bias_.get() + first, 0, width, sums, width);
      for (int64_t k = 0; k < depth; k += cpu::kDepth) {
        const float* b = strip + k * width;
        tile.by_row[width / tiles.lanes - 1](std::min(cpu::kDepth, depth - k), scratch + k * room + s * cpu::kDepth, b,
                                             sums, width, cpu::Ahead::none(b));
      }
      if (relu_) relu(sums, samples * width, sums);
      copy_runs(samples, sums, width, size, out + s * rows + first, rows);
    }
  }
}

void Product::run_image(const float* x, bool external, float* out, float* scratch) const {
  const float* image = x;
  if (copies() || external) {
    lay_out_one(x, scratch);
    image = scratch;
  }
  const int64_t area = window_.stride[0] * window_.stride[1] * phase_.size() + kSlack;
  float *sums = scratch + area, *b = sums + weights_.rows() * kChunk;
  const Rows rows{weights_.rows(), weights_.starts.data(), one_offsets_.data(), weights_.values.data(),
                  weights_.bias.data()};
  const int64_t pitch = phase_.width, end = (out_.height - 1) * pitch + out_.width;
  for (int64_t begin = 0; begin < end;) {
    const int64_t left = end - begin, lanes = left > 32 ? 64 : left > 16 ? 32 : 16, stop = std::min(begin + lanes, end);
    if (methods_.one == Method::sparse) {
      sparse_rows(rows, image + begin, 1, lanes, sums, kChunk, relu_);
    } else {
      dense(packed_one_, image + begin, 1, lanes, sums, kChunk, b);
    }
    for (int64_t y = begin / pitch; y * pitch < stop; ++y) {
      const int64_t from = std::max(begin, y * pitch), to = std::min(stop, y * pitch + out_.width);
      if (from >= to) continue;
      copy_runs(weights_.rows(), sums + from - begin, kChunk, to - from, out + y * out_.width + from - y * pitch,
                out_.height * out_.width);
    }
    begin += lanes;
  }
}

void Product::run_panel(const float* x, int64_t lanes, float* out, float* scratch) const {
  const float* image = x;
  float* b = scratch;
  Shape shape = in_;
  if (bordered()) {
    lay_out_panel(x, lanes, scratch);
    image = scratch;
    shape = padded_;
    b += padded_.size() * lanes;
  }
  const Rows rows{weights_.rows(), weights_.starts.data(), panel_offsets_.data(), weights_.values.data(),
                  weights_.bias.data()};
  const int64_t area = out_.height * out_.width;
  for (int64_t y = 0; y < out_.height; ++y) {
    for (int64_t i = 0; i < out_.width; ++i) {
      const float* at = image + (y * window_.stride[0] * shape.width + i * window_.stride[1]) * lanes;
      float* to = out + (y * out_.width + i) * lanes;
      if (methods_.panel == Method::sparse) {
        sparse_rows(rows, at, lanes, lanes, to, area * lanes, relu_);
      } else {
        dense(packed_panel_, at, lanes, lanes, to, area * lanes, b);
      }
    }
  }
}

}  // namespace sparsenn::runtime
