#include "cpu/measures.h"

#include <algorithm>

#include "cpu/simd.h"

namespace sparsenn {
namespace cpu {
namespace {

constexpr int kWidth = 64, kLanes = 8;  // weights that are looked at together, and sums that are formed side by side

SPARSENN_INLINE void add_lanes(double (&lanes)[kLanes], const double (&terms)[kWidth]) {
  for (int i = 0; i < kWidth; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += terms[i + lane];
  }
}

// Terms behind the end of a block stay 0.
template <class W>
SPARSENN_INLINE void measure_any(const MeasuredBlock<W>& block, double* sums) {
  using T = accumulator_t<W>;
  const double depth = static_cast<double>(block.depth);
  double lanes[kMeasures][kLanes] = {};
  for (int64_t begin = 0; begin < block.size; begin += kWidth) {
    const int64_t size = std::min<int64_t>(kWidth, block.size - begin);
    double terms[kMeasures][kWidth] = {}, largest[kWidth] = {}, unit[kWidth];
    double mean[kWidth] = {}, product[kWidth], log[kWidth] = {};
    for (int64_t i = 0; i < size; ++i) {
      const T weight = load(block.weight[begin + i]);
      terms[0][i] = is_kept(weight, block.threshold) ? 1.0 : 0.0;
      terms[1][i] = static_cast<double>(weight) * weight;
    }
    for (int64_t d = 0; d < block.depth; ++d) {
      const T* const factor = block.factors[d] + begin;
      for (int64_t i = 0; i < size; ++i) {
        const double magnitude = std::fabs(static_cast<double>(factor[i]));
        terms[2][i] += magnitude * magnitude;
        largest[i] = magnitude > largest[i] ? magnitude : largest[i];
      }
    }
    for (int i = 0; i < kWidth; ++i) product[i] = 1, unit[i] = divisor(largest[i]);
    for (int64_t d = 0; d < block.depth; ++d) {
      const T* const factor = block.factors[d] + begin;
      for (int64_t i = 0; i < size; ++i) {
        const double relative = factor[i] / unit[i], square = relative * relative;
        mean[i] += square, product[i] *= square;
      }
      for (int i = 0; block.depth > kMaxUnrolledDepth && i < kWidth; ++i) take_log(product[i], log[i]);
    }
    for (int i = 0; i < kWidth; ++i) {
      terms[2][i] /= depth;
      terms[3][i] = misalignment(largest[i], mean[i] / depth, product[i], log[i], depth);
    }
    for (int k = 0; k < kMeasures; ++k) add_lanes(lanes[k], terms[k]);
  }
  for (int k = 0; k < kMeasures; ++k) {
    sums[k] = 0;
    for (const double lane : lanes[k]) sums[k] += lane;
  }
}

}  // namespace

SPARSENN_CLONES void measure(const MeasuredBlock<double>& block, double* sums) { measure_any(block, sums); }
SPARSENN_CLONES void measure(const MeasuredBlock<float>& block, double* sums) { measure_any(block, sums); }
SPARSENN_CLONES void measure(const MeasuredBlock<bfloat16>& block, double* sums) { measure_any(block, sums); }
SPARSENN_CLONES void measure(const MeasuredBlock<float16>& block, double* sums) { measure_any(block, sums); }

Measuring::Measuring(const Measures& wanted, const TensorView* weights, int64_t count)
    : wanted_(wanted), parts_(static_cast<double*>(wanted.workspace)) {
  if (wanted.data) first_block_ = first_blocks(weights, count);
}

void Measuring::finish() const {
  if (!wanted_.data) return;
  for (size_t n = 0; n + 1 < first_block_.size(); ++n) {
    double sums[kMeasures] = {};
    for (int64_t block = first_block_[n]; block < first_block_[n + 1]; ++block) {
      for (int k = 0; k < kMeasures; ++k) sums[k] += parts_[block * kMeasures + k];
    }
    std::copy_n(sums, kMeasures, wanted_.data + n * kMeasures);
  }
}

}  // namespace cpu

template <>
int64_t measures_workspace<Cpu>(const TensorView* weights, int64_t count) {
  return cpu::first_blocks(weights, count).back() * kMeasures * static_cast<int64_t>(sizeof(double));
}

}  // namespace sparsenn
