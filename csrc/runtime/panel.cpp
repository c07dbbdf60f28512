#include "runtime/panel.h"

#include <algorithm>
#include <type_traits>

#include "cpu/simd.h"
#include "cpu/vector.h"

namespace sparsenn::runtime {
namespace {

constexpr int kLine = 16;  // floats of a line of the cache

using Line = cpu::vector_t<float, kLine>;
using Eight = cpu::vector_t<float, 8>;

// An 8 x 8 transposition: of halves of vectors, of pairs of neighbours, of neighbours. Row i begins at row(i).
template <class Row>
SPARSENN_INLINE void transpose8(const Row& row, Eight (&rows)[8]) {
  Eight halves[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Eight upper, lower;
    cpu::read<8>(upper, row(i));
    cpu::read<8>(lower, row(i + 4));
    cpu::shuffle<0, 1, 2, 3, 8, 9, 10, 11>(halves[i], upper, lower);
    cpu::shuffle<4, 5, 6, 7, 12, 13, 14, 15>(halves[i + 4], upper, lower);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    Eight a, b, c, d;
    cpu::shuffle<0, 8, 1, 9, 4, 12, 5, 13>(a, halves[i], halves[i + 1]);
    cpu::shuffle<2, 10, 3, 11, 6, 14, 7, 15>(b, halves[i], halves[i + 1]);
    cpu::shuffle<0, 8, 1, 9, 4, 12, 5, 13>(c, halves[i + 2], halves[i + 3]);
    cpu::shuffle<2, 10, 3, 11, 6, 14, 7, 15>(d, halves[i + 2], halves[i + 3]);
    cpu::shuffle<0, 1, 8, 9, 4, 5, 12, 13>(rows[i], a, c);
    cpu::shuffle<2, 3, 10, 11, 6, 7, 14, 15>(rows[i + 1], a, c);
    cpu::shuffle<0, 1, 8, 9, 4, 5, 12, 13>(rows[i + 2], b, d);
    cpu::shuffle<2, 3, 10, 11, 6, 7, 14, 15>(rows[i + 3], b, d);
  }
}

// Brings samples into a panel, by eights of features and kEights of samples at a time: a whole line of the cache, where
// that can be. Its sums end as 0 if all numbers that it saw are finite: 0 x is 0, and NaN for infinities and NaN.
class PanelWriter {
 public:
  SPARSENN_INLINE PanelWriter(const Places& places, int64_t lanes) : places_(places), lanes_(lanes) {}

  // Sample k of them begins at row(k).
  template <int kEights, class Row>
  SPARSENN_INLINE void bring(const Row& row, float* to) {
    if (places_.features < 8) {
      for (int64_t f = 0; f < places_.features; ++f) {
        for (int k = 0; k < 8 * kEights; ++k) {
          to[places_.rows[f] * lanes_ + k] = row(k)[f];
          rest_ += row(k)[f] * 0.0f;
        }
      }
      return;
    }
    for (int64_t eight = 0; 8 * eight < places_.features; ++eight) {
      const int64_t f = std::min(8 * eight, places_.features - 8);
      if (!places_.wanted[eight]) {
#pragma GCC unroll 16
        for (int k = 0; k < 8 * kEights; ++k) {
          Eight unwanted;
          cpu::read<8>(unwanted, row(k) + f);
          sums_[k % 4] += unwanted * 0.0f;
        }
        continue;
      }
      Eight rows[kEights][8];
#pragma GCC unroll 2
      for (int n = 0; n < kEights; ++n) {
        transpose8([&](int k) SPARSENN_INLINED { return row(8 * n + k) + f; }, rows[n]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sums_[j % 4] += rows[n][j] * 0.0f;
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        float* place = to + places_.rows[f + j] * lanes_;
#pragma GCC unroll 2
        for (int n = 0; n < kEights; ++n) cpu::write<8>(place + 8 * n, rows[n][j]);
      }
    }
  }

  template <int kEights>
  SPARSENN_INLINE void bring_all(const float* x, int64_t count, float* panel) {
    const int64_t features = places_.features;
    int64_t s = 0;
    for (; s + 8 * kEights <= count; s += 8 * kEights) {
      const float* from = x + s * features;
      bring<kEights>([&](int64_t k) SPARSENN_INLINED { return from + k * features; }, panel + s);
    }
    if (s < count) {  // the last sample stands for those that are missing
      bring<kEights>([&](int64_t k) SPARSENN_INLINED { return x + std::min(s + k, count - 1) * features; }, panel + s);
    }
  }

  SPARSENN_INLINE bool finite() const {
    const Eight sums = sums_[0] + sums_[1] + sums_[2] + sums_[3];
    float sum = rest_;
    for (int i = 0; i < 8; ++i) sum += sums[i];
    return sum == 0;
  }

 private:
  const Places& places_;
  int64_t lanes_;
  Eight sums_[4] = {};
  float rest_ = 0;
};

SPARSENN_INLINE float total(const Line& sums) {
  float lanes[kLine];
  cpu::write<kLine>(lanes, sums);
  for (int half = kLine / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace

SPARSENN_CLONES bool to_panel(const float* x, int64_t count, const Places& places, int64_t lanes, float* panel) {
  PanelWriter writer(places, lanes);
  lanes < 16 ? writer.bring_all<1>(x, count, panel) : writer.bring_all<2>(x, count, panel);
  return writer.finite();
}

SPARSENN_CLONES void from_panel(const float* panel, int64_t count, int64_t features, int64_t lanes, float* x) {
  int64_t f = 0;
  for (; f + 8 <= features; f += 8) {  // all samples of eight features, whose lines are in the first cache then
    for (int64_t s = 0; s < count; s += 8) {
      const int64_t left = std::min<int64_t>(count - s, 8);
      Eight rows[8];
      const float* from = panel + f * lanes + s;
      transpose8([&](int64_t k) SPARSENN_INLINED { return from + k * lanes; }, rows);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        if (j < left) cpu::write<8>(x + (s + j) * features + f, rows[j]);
      }
    }
  }
  for (int64_t s = 0; s < count && f < features; ++s) {
    for (int64_t g = f; g < features; ++g) x[s * features + g] = panel[g * lanes + s];
  }
}

// By vectors, of which the last overlaps the one before it.
SPARSENN_CLONES void copy_runs(int64_t count, const float* from, int64_t from_stride, int64_t size, float* to,
                               int64_t to_stride) {
  const auto by = [&](auto width) SPARSENN_INLINED {
    cpu::vector_t<float, width> part;
    for (int64_t r = 0; r < count; ++r, from += from_stride, to += to_stride) {
      for (int64_t i = 0; i + width < size; i += width) {
        cpu::read<width>(part, from + i);
        cpu::write<width>(to + i, part);
      }
      cpu::read<width>(part, from + size - width);
      cpu::write<width>(to + size - width, part);
    }
  };
  if (size >= kLine) {
    by(std::integral_constant<int, kLine>());
  } else if (size >= 4) {
    by(std::integral_constant<int, 4>());
  } else {
    for (int64_t r = 0; r < count; ++r, from += from_stride, to += to_stride) {
      for (int64_t i = 0; i < size; ++i) to[i] = from[i];
    }
  }
}

// 0 x is 0, and NaN for infinities and NaN.
SPARSENN_CLONES bool all_finite(const float* x, int64_t size) {
  Line sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLine <= size; i += 4 * kLine) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Line part;
      cpu::read<kLine>(part, x + i + j * kLine);
      sums[j] += part * 0.0f;
    }
  }
  float sum = total(sums[0] + sums[1] + sums[2] + sums[3]);
  for (; i < size; ++i) sum += 0.0f * x[i];
  return sum == 0;
}

}  // namespace sparsenn::runtime
