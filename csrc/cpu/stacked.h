// Small networks in training on the CPU: what the kernel of one run and that of many runs at once share.
//
// Everything is cut into vectors of 64 bytes, whatever the processor has: kWide lanes, which are the samples of a batch
// where one run is trained, and runs where many are. A lane knows nothing of the others.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/simd.h"
#include "launchers.h"
#include "math/activation.h"
#include "math/permutation.h"
#include "math/stacked_steps.h"

namespace sparsenn::cpu {

template <class T>
constexpr int kWide = 64 / sizeof(T);

constexpr int64_t padded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

struct StackedLayer : PatchLayer {
  int64_t positions, inputs, outputs;
  int64_t weights, biases;    // where they begin among a run's parameters
  std::vector<int64_t> taps;  // where the inputs of the first patch lie

  int64_t patch() const { return static_cast<int64_t>(taps.size()); }
};

std::vector<StackedLayer> layers_of(const Stack& stack);

// A StepRates for each lane.
template <class T>
struct alignas(64) LaneRates {
  T lr[kWide<T>], strength[kWide<T>], decay[kWide<T>], threshold[kWide<T>], momentum[kWide<T>], rest1[kWide<T>],
      beta2[kWide<T>], rest2[kWide<T>], eps[kWide<T>], root[kWide<T>], clipping[kWide<T>];

  void set(int lane, const StepRates<T>& rates) {
    lr[lane] = rates.lr, strength[lane] = rates.strength, decay[lane] = rates.decay;
    threshold[lane] = rates.threshold, momentum[lane] = rates.momentum, rest1[lane] = rates.rest1;
    beta2[lane] = rates.beta2, rest2[lane] = rates.rest2, eps[lane] = rates.eps, root[lane] = rates.root;
    clipping[lane] = rates.clipping;
  }

  SPARSENN_INLINE StepRates<T> at(int lane) const {
    return {lr[lane],    strength[lane], decay[lane], threshold[lane], momentum[lane], rest1[lane],
            beta2[lane], rest2[lane],    eps[lane],   root[lane],      clipping[lane]};
  }
};

// What the steps of runs have in common that are taken in one loop.
struct StepKind {
  Activation activation, last;
  Optimizer optimizer;
  WeightPenalty penalty;
  int64_t depth;
  auto operator<=>(const StepKind&) const = default;
};

inline StepKind kind_of(const StackedRun& run) {
  return {run.activation, run.last, run.optimizer, run.penalty, run.optimizer == Optimizer::factorized ? run.depth : 1};
}

// `size` weights, element i in lane i % kWide, with their gradients and rows of state; `penalties` has kWide sums.
template <class T>
struct Update {
  int64_t size;
  T* weights;
  const T* grads;
  T* state;
  int64_t stride;  // between rows of state
  const LaneRates<T>* rates;
  T* penalties;
};

void update(const StepKind& kind, const Update<float>& step);
void update(const StepKind& kind, const Update<double>& step);

// z becomes the slope, a the value; size is a multiple of kWide.
void activate(Activation kind, int64_t size, float* z, float* a);
void activate(Activation kind, int64_t size, double* z, double* a);

// Losses of kWide lanes: `count` rows of outputs, targets and gradients, `stride` apart; labels are one row. `scale` is
// what the sum of losses is divided by in their mean; `sums` are added to.
template <class T>
struct Losses {
  int64_t count, stride;
  const T* outputs;
  const T* targets;       // null with labels
  const int64_t* labels;  // null with targets
  T scale;
  T *gradients, *sums;
};

// numbers *= by; size is a multiple of kWide.
void multiply(int64_t size, const float* by, float* numbers);
void multiply(int64_t size, const double* by, double* numbers);

void add_losses(const Losses<float>& losses);
void add_losses(const Losses<double>& losses);

// The samples from the `begin`-th on in an order.
void samples_of(const Permutation& order, int64_t begin, int64_t count, int32_t* samples);

// Numbers in memory of their own, aligned to vectors, at first zero.
template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size) : data_(new (std::align_val_t(64)) T[size]()) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~AlignedBuffer() { ::operator delete[](data_, std::align_val_t(64)); }
  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  T* data_;
};

// The samples of one step after the other, found for several steps at once: a single one would not fill the processor.
class Order {
 public:
  Order(const Stack& stack, int64_t seed)
      : permutation_(stack.samples, seed, stack.epoch),
        size_(stack.samples),
        batch_(stack.batch),
        samples_(2 * kSteps * batch_) {}

  // They stay while steps of this block or of the next are asked for.
  const int32_t* of_step(int64_t step) {
    const int64_t block = step / kSteps, begin = block * kSteps * batch_;
    int32_t* const samples = samples_ + block % 2 * kSteps * batch_;
    if (known_[block % 2] != block) {
      samples_of(permutation_, begin, std::min(kSteps * batch_, size_ - begin), samples);
      known_[block % 2] = block;
    }
    return samples + step % kSteps * batch_;
  }

 private:
  static constexpr int64_t kSteps = 8;
  Permutation permutation_;
  int64_t size_, batch_, known_[2] = {-1, -1};
  AlignedBuffer<int32_t> samples_;
};

// The trainers: of one run after the other, for structures of dense layers; and of up to kWide runs of one kind.
template <class T>
void train_dense(const Stack& stack, const std::vector<StackedLayer>& layers, const StackedRun& run);
template <class T>
void train_lanes(const Stack& stack, const std::vector<StackedLayer>& layers, const StackedRun* const* runs,
                 int64_t count);

}  // namespace sparsenn::cpu
