// What steps on factors leave of their tensors: added up by blocks while these are in the cache, and in their order.
#pragma once

#include <vector>

#include "cpu/parallel.h"
#include "launchers.h"
#include "math/measures.h"

namespace sparsenn::cpu {

// W: the weights. Their factors have the accumulator's type.
template <class W>
struct MeasuredBlock {
  const W* weight;
  accumulator_t<W>* const* factors;
  int64_t depth, size;
  accumulator_t<W> threshold;
};

void measure(const MeasuredBlock<double>& block, double* sums);
void measure(const MeasuredBlock<float>& block, double* sums);
void measure(const MeasuredBlock<bfloat16>& block, double* sums);
void measure(const MeasuredBlock<float16>& block, double* sums);

class Measuring {
 public:
  Measuring(const Measures& wanted, const TensorView* weights, int64_t count);

  explicit operator bool() const { return wanted_.data; }

  // Call for each block of each weight, from any thread, after its step.
  template <class W>
  void add(int64_t n, int64_t begin, int64_t size, const W* weight, accumulator_t<W>* const* factors,
           int64_t depth) const {
    if (!wanted_.data) return;
    measure({weight, factors, depth, size, static_cast<accumulator_t<W>>(wanted_.threshold)},
            parts_ + (first_block_[n] + begin / kBlock) * kMeasures);
  }

  // Call when all were added.
  void finish() const;

 private:
  const Measures& wanted_;
  double* const parts_;
  std::vector<int64_t> first_block_;
};

}  // namespace sparsenn::cpu
