// The arithmetic is that of csrc/math, compiled with --fmad=false: in float32 and float64 the bits are the CPU's.
#include "cuda/launch.cuh"
#include "cuda/scalar.h"
#include "math/prox_sgd.h"

namespace sparsenn {
namespace {

using cuda::Pack;

// The rule as far as the host knows it; an lr that lies on the device is read when the kernel runs.
template <class T>
struct Rule {
  ProxSgdOptions options;
  bool with_momentum;
  ProxSgd<T> known;

  Rule(const ProxSgdOptions& options, bool with_momentum)
      : options(options), with_momentum(with_momentum), known(options, options.lr.value, with_momentum) {}

  SPARSENN_INLINE Rule prepared() const {
    Rule rule = *this;
    if (options.lr.device) {
      const ProxSgd<T> read(options, cuda::value_of(options.lr), with_momentum);
      // These alone: the others stay constants, which take no registers.
      rule.known.sgd.lr = read.sgd.lr;
      rule.known.effective_lr = read.effective_lr;
    }
    return rule;
  }
};

// A weight's words beside its operands: where its zeros are counted, and its lam where that is a number: the address on
// the device, plus 1 where it is a float64 there, or 0 and the value.
constexpr int kExtraWords = 3;

SPARSENN_INLINE double lam_of(uint64_t address, uint64_t value) {
  if (address == 0) return bit_cast<double>(value);
  return cuda::value_of({0, reinterpret_cast<const void*>(address & ~uint64_t{1}), (address & 1) != 0});
}

// W: the weights and their gradients; momenta have the accumulator's type. L: the type of lam where it is a tensor, or
// void. Operands: weight, gradient, momentum, lam.
template <class W, bool kMomentum, class L>
struct ProxStep {
  using T = accumulator_t<W>;
  static constexpr bool kTensor = !std::is_void_v<L>;
  static constexpr int kDepth = 1, kOperands = 2 + kMomentum + kTensor, kExtras = kExtraWords, kWidth = 16 / sizeof(T);
  Rule<T> rule;

  SPARSENN_INLINE ProxStep prepared() const { return {rule.prepared()}; }

  // Returns the number of zeros.
  template <int N, class Element>
  SPARSENN_INLINE uint32_t apply(const Element& element) const {
    Pack<W, N> weight = cuda::read<N>(element.template pointer<W>(0));
    const Pack<W, N> grad = cuda::read<N>(element.template pointer<W>(1));
    Pack<T, N> momentum{}, lam;
    if constexpr (kMomentum) momentum = cuda::read<N>(element.template pointer<T>(2));
    bool penalized = true;
    if constexpr (kTensor) {
      const Pack<L, N> own = cuda::read<N>(element.template pointer<L>(2 + kMomentum));
      SPARSENN_UNROLL
      for (int i = 0; i < N; ++i) lam.values[i] = load(own.values[i]);
    } else {
      const T shared = static_cast<T>(lam_of(element.word(kOperands + 1), element.word(kOperands + 2)));
      penalized = shared != T(0);
      SPARSENN_UNROLL
      for (int i = 0; i < N; ++i) lam.values[i] = shared;
    }
    uint32_t zeros = 0;
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      weight.values[i] = prox_sgd_step<W, kMomentum>(load(weight.values[i]), load(grad.values[i]), momentum.values[i],
                                                     penalized, lam.values[i], rule.known);
      zeros += is_zero(weight.values[i]) ? 1 : 0;
    }
    cuda::write(element.template pointer<W>(0), weight);
    if constexpr (kMomentum) cuda::write(element.template pointer<T>(2), momentum);
    return zeros;
  }
};

// The weights of a call whose lams are of one kind.
struct Group {
  std::vector<const TensorView*> tensors;
  std::vector<uint64_t> extras;
};

}  // namespace

template <>
void prox_sgd<Cuda>(const TensorView* weights, const TensorView* momenta, const TensorView* grads,
                    const Threshold* lams, const Counts& zeros, int64_t count, const ProxSgdOptions& options,
                    void* stream) {
  if (count == 0) return;
  if (zeros.data) cuda::clear(zeros.data, zeros.stride, count, stream);
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    using T = accumulator_t<W>;
    Group numbers, like_weights, accumulators;
    for (int64_t n = 0; n < count; ++n) {
      const auto& [lam, tensor] = lams[n];
      Group& group = !tensor.data ? numbers : tensor.dtype == weights[n].dtype ? like_weights : accumulators;
      group.tensors.insert(group.tensors.end(), {weights + n, grads + n});
      if (momenta) group.tensors.push_back(momenta + n);
      if (tensor.data) group.tensors.push_back(&tensor);
      group.extras.push_back(reinterpret_cast<uintptr_t>(zeros.data ? zeros.data + n * zeros.stride : nullptr));
      group.extras.push_back(reinterpret_cast<uintptr_t>(lam.device) | (lam.device && lam.is_double ? 1 : 0));
      group.extras.push_back(bit_cast<uint64_t>(lam.value));
    }
    const Rule<T> rule(options, momenta != nullptr);
    const auto run = [&]<bool kMomentum, class L>(const Group& group, const ProxStep<W, kMomentum, L>& op) {
      if (!group.tensors.empty()) {
        cuda::run(cuda::operation<false>("prox_sgd_", op, op), group.tensors, op.kOperands, 0, stream, group.extras);
      }
    };
    const auto run_all = [&](auto with_momentum) {
      run(numbers, ProxStep<W, with_momentum, void>{rule});
      run(like_weights, ProxStep<W, with_momentum, W>{rule});
      if constexpr (!std::is_same_v<W, T>) run(accumulators, ProxStep<W, with_momentum, T>{rule});
    };
    momenta ? run_all(std::true_type{}) : run_all(std::false_type{});
  });
}

}  // namespace sparsenn
