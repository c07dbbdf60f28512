#include "cpu/parallel.h"
#include "cpu/spectral.h"

namespace sparsenn {
namespace cpu {
namespace {

template <class T, class To>
SPARSENN_INLINE void compose_any(const Compose<T, To>& row) {
  using A = accumulator_t<T>;
  const T* const phi = row.phi;
  const A* const start = row.start;
  const A end = row.end;
  To* const weight = row.weight;
  if (start) {
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < row.size; ++i) weight[i] = store<To>(spectral_scale(start[i], end) * load(phi[i]));
  } else {
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < row.size; ++i) weight[i] = store<To>(-end * load(phi[i]));
  }
}

}  // namespace

SPARSENN_CLONES void compose(const Compose<double, double>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<float, float>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<bfloat16, bfloat16>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<float16, float16>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<bfloat16, float>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<float16, float>& row) { compose_any(row); }

}  // namespace cpu

template <>
void spectral_weight<Cpu>(const Spectrum& spectrum, void* weight, void*) {
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    const cpu::Eigen<T> eigen(spectrum);
    const int64_t grain =
        std::max<int64_t>(1, cpu::kBlocksPerThread * cpu::kBlock / std::max<int64_t>(1, eigen.columns));
    cpu::for_each_part(eigen.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        cpu::compose(
            {eigen.row(o), eigen.start(), eigen.end(o), eigen.columns, static_cast<T*>(weight) + o * eigen.columns});
      }
    });
  });
}

template <>
int64_t spectral_weight_workspace<Cpu>(const Spectrum&) {
  return 0;
}

// Groups of rows: within one, a column's sum goes from the first row to the last; then the groups' are added in order.
template <>
void spectral_weight_backward<Cpu>(const void* grad, const Spectrum& spectrum, const SpectralGradients& gradients,
                                   void*, void*) {
  constexpr int64_t kGroup = 64;
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    using A = accumulator_t<T>;
    const cpu::Eigen<T> eigen(spectrum);
    T *const phi_grad = static_cast<T*>(gradients.phi), *const in_grad = static_cast<T*>(gradients.lambda_in),
             *const out_grad = static_cast<T*>(gradients.lambda_out);
    const int64_t groups = (eigen.rows + kGroup - 1) / kGroup;
    std::vector<A> columns(in_grad ? groups * eigen.columns : 0);
    cpu::for_each_part(groups, 1, [&](int64_t first, int64_t last) {
      for (int64_t o = first * kGroup; o < std::min(eigen.rows, last * kGroup); ++o) {
        const int64_t at = o * eigen.columns;
        A partials[cpu::kPartials<A>] = {};
        cpu::pull(static_cast<const T*>(grad) + at, eigen.phi + at, eigen.start(), eigen.end(o), eigen.columns,
                  phi_grad ? phi_grad + at : nullptr, in_grad ? columns.data() + o / kGroup * eigen.columns : nullptr,
                  out_grad ? partials : nullptr);
        if (out_grad) out_grad[o] = store<T>(-cpu::total(partials));
      }
    });
    for (int64_t i = 0; in_grad && i < spectrum.in; ++i) {
      A sum(0);
      for (int64_t group = 0; group < groups; ++group) {
        const A* const own = columns.data() + group * eigen.columns + i * spectrum.kernel;
        for (int64_t k = 0; k < spectrum.kernel; ++k) sum += own[k];
      }
      in_grad[i] = store<T>(sum);
    }
  });
}

}  // namespace sparsenn
