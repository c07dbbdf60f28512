// What steps on factors leave of their tensors: each chunk's sums by the step's own kernel, then those of all chunks.
// Include it behind cuda/launch.cuh.
#pragma once

#include <vector>

#include "cuda/sums.h"
#include "math/measures.h"

namespace sparsenn::cuda {

// A step, and what it has left of weight and factors, read again by the thread that wrote them. Its operands begin with
// weight and gradient; factors follow.
template <class Op>
struct Measured : Op {
  using T = typename Op::T;
  using W = typename Op::W;
  static constexpr int kMeasuredAt = extras_of<Op>(), kExtras = kMeasuredAt + 1, kWidth = 1;
  T threshold;
  int factors;  // of a weight, where the step does not know it

  SPARSENN_INLINE Measured prepared() const { return {Op::prepared(), threshold, factors}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element, double (&sums)[kMeasures]) const {
    Op::template apply<N>(element);
    add_measures(sums, load(*element.template pointer<W>(0)), threshold, Op::kDepth ? Op::kDepth : factors,
                 [&](int d) { return *element.template pointer<T>(2 + d); });
  }
};

struct AddChunks {
  static constexpr int kPhases = 3;
  using Shared = Sums[kMeasures];

  const double* parts;
  int64_t number;
  double* to;
  int64_t blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t, int thread, Shared& shared) const {
    SPARSENN_UNROLL
    for (int k = 0; k < kMeasures; ++k) {
      if constexpr (P == 0) {
        double sum = 0;
        for (int64_t i = thread; i < number; i += kThreads) sum += parts[i * kMeasures + k];
        shared[k].threads[thread] = sum;
      } else {
        add_up<P>(thread, shared[k], to + k);
      }
    }
  }
};

// Where the chunks of each weight have their sums. Both walks take a measured weight in chunks of kThreads.
class Parts {
 public:
  Parts(const Measures& wanted, const std::vector<const TensorView*>& tensors, int64_t operands)
      : wanted_(wanted), chunks_(1, 0) {
    for (size_t k = 0; k < tensors.size(); k += operands) chunks_.push_back(chunks_.back() + chunks_of(*tensors[k]));
  }

  static int64_t chunks_of(const TensorView& weight) { return (weight.numel + kThreads - 1) / kThreads; }

  uint64_t word(int64_t n) const { return reinterpret_cast<uintptr_t>(place(n)); }

  // When the step was launched.
  void add_up(void* stream) const {
    for (size_t n = 0; n + 1 < chunks_.size(); ++n) {
      launch_phases(AddChunks{place(n), chunks_[n + 1] - chunks_[n], wanted_.data + n * kMeasures, 1}, stream);
    }
  }

 private:
  double* place(int64_t n) const { return static_cast<double*>(wanted_.workspace) + chunks_[n] * kMeasures; }

  const Measures& wanted_;
  std::vector<int64_t> chunks_;
};

// Runs a step that measures; `factors` is how many it has for each weight, `extras` are the words of its own.
template <class Op>
void run_measured(const char* name, const Op& op, int64_t factors, const std::vector<const TensorView*>& tensors,
                  int64_t operands, const Measures& wanted, void* stream, const std::vector<uint64_t>& extras = {}) {
  const int64_t count = static_cast<int64_t>(tensors.size()) / operands;
  const Parts parts(wanted, tensors, operands);
  std::vector<uint64_t> words;
  words.reserve(count * (extras_of<Op>() + 1));
  for (int64_t n = 0; n < count; ++n) {
    const auto own = extras.begin() + n * extras_of<Op>();
    words.insert(words.end(), own, own + extras_of<Op>());
    words.push_back(parts.word(n));
  }
  const Measured<Op> measured{op, static_cast<typename Op::T>(wanted.threshold), static_cast<int>(factors)};
  static_assert(Flat::kChunk<Measured<Op>> == kThreads && Strided::kChunk == kThreads);
  run(operation<false>(name, measured, measured), tensors, operands, 0, stream, words);
  parts.add_up(stream);
}

}  // namespace sparsenn::cuda
