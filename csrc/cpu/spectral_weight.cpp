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

template <class T, class G>
SPARSENN_INLINE void pull_any(const Pull<T, G>& row) {
  using A = accumulator_t<T>;
  const G* const grad = row.grad;
  const T* const phi = row.phi;
  if (row.columns) {
    A* const columns = row.columns;
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < row.size; ++i) columns[i] = multiply_add(load(grad[i]), load(phi[i]), columns[i]);
  }
  if (row.partials) {
    constexpr int64_t kLanes = kPartials<A>;
    A sums[kLanes];
    std::copy_n(row.partials, kLanes, sums);
    int64_t i = 0;
    for (; i + kLanes <= row.size; i += kLanes) {
#pragma GCC unroll 16
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sums[lane] = multiply_add(load(grad[i + lane]), load(phi[i + lane]), sums[lane]);
      }
    }
    for (int64_t lane = 0; i < row.size; ++i, ++lane) {
      sums[lane] = multiply_add(load(grad[i]), load(phi[i]), sums[lane]);
    }
    std::copy_n(sums, kLanes, row.partials);
  }
  if (row.phi_grad) {  // last: it may lie in the gradient's place
    T* const to = row.phi_grad;
    const A* const start = row.start;
    const A end = row.end;
    if (start) {
      SPARSENN_INDEPENDENT
      for (int64_t i = 0; i < row.size; ++i) to[i] = store<T>(spectral_scale(start[i], end) * load(grad[i]));
    } else {
      SPARSENN_INDEPENDENT
      for (int64_t i = 0; i < row.size; ++i) to[i] = store<T>(-end * load(grad[i]));
    }
  }
}

}  // namespace

SPARSENN_CLONES void compose(const Compose<double, double>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<float, float>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<bfloat16, bfloat16>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<float16, float16>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<bfloat16, float>& row) { compose_any(row); }
SPARSENN_CLONES void compose(const Compose<float16, float>& row) { compose_any(row); }

SPARSENN_CLONES void pull(const Pull<double, double>& row) { pull_any(row); }
SPARSENN_CLONES void pull(const Pull<float, float>& row) { pull_any(row); }
SPARSENN_CLONES void pull(const Pull<bfloat16, bfloat16>& row) { pull_any(row); }
SPARSENN_CLONES void pull(const Pull<float16, float16>& row) { pull_any(row); }
SPARSENN_CLONES void pull(const Pull<bfloat16, float>& row) { pull_any(row); }
SPARSENN_CLONES void pull(const Pull<float16, float>& row) { pull_any(row); }

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

// Strips of columns, each from the first row to the last: the sums of a column have one order.
template <>
void spectral_weight_backward<Cpu>(const void* grad, const Spectrum& spectrum, const SpectralGradients& gradients,
                                   void*, void*) {
  constexpr int64_t kStrip = 512;
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    using A = accumulator_t<T>;
    const cpu::Eigen<T> eigen(spectrum);
    T *const phi_grad = static_cast<T*>(gradients.phi), *const in_grad = static_cast<T*>(gradients.lambda_in),
             *const out_grad = static_cast<T*>(gradients.lambda_out);
    const int64_t strips = (eigen.columns + kStrip - 1) / kStrip;
    std::vector<A> columns(in_grad ? eigen.columns : 0), rows(out_grad ? strips * eigen.rows : 0);
    cpu::for_each_part(strips, 1, [&](int64_t first, int64_t last) {
      for (int64_t strip = first; strip < last; ++strip) {
        const int64_t begin = strip * kStrip, size = std::min(kStrip, eigen.columns - begin);
        for (int64_t o = 0; o < eigen.rows; ++o) {
          const int64_t at = o * eigen.columns + begin;
          A partials[cpu::kPartials<A>] = {};
          cpu::pull(cpu::Pull<T, T>{static_cast<const T*>(grad) + at, eigen.phi + at,
                                    eigen.start() ? eigen.start() + begin : nullptr, eigen.end(o), size,
                                    phi_grad ? phi_grad + at : nullptr, in_grad ? columns.data() + begin : nullptr,
                                    out_grad ? partials : nullptr});
          if (out_grad) rows[strip * eigen.rows + o] = cpu::total(partials);
        }
      }
    });
    for (int64_t i = 0; in_grad && i < spectrum.in; ++i) {
      A sum(0);
      for (int64_t k = 0; k < spectrum.kernel; ++k) sum += columns[i * spectrum.kernel + k];
      in_grad[i] = store<T>(sum);
    }
    for (int64_t o = 0; out_grad && o < eigen.rows; ++o) {
      A sum(0);
      for (int64_t strip = 0; strip < strips; ++strip) sum += rows[strip * eigen.rows + o];
      out_grad[o] = store<T>(-sum);
    }
  });
}

}  // namespace sparsenn
