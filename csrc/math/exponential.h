// exp, log and the normal distribution, without branches, tables or a library: loops over them vectorize, and the bits
// are the same on every processor and device. Errors are a few units in the last place.
#pragma once

#include "math/scalar.h"

namespace sparsenn {

template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr uint32_t kBias = 127, kRootHalf = 0x3f3504f3u;
  static constexpr float kRounder = 12582912.f;             // 3/2 2^23: what is added to it is rounded to an integer
  static constexpr float kLowest = -87.f, kHighest = 88.f;  // exp of less or more is not a normal number
  static constexpr float kLog2High = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f;
  static constexpr int kExpTerms = 7, kLogTerms = 5, kMillsTerms = 10;
};

template <>
struct FloatFormat<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr uint64_t kBias = 1023, kRootHalf = 0x3fe6a09e667f3bcdu;
  static constexpr double kRounder = 6755399441055744.;
  static constexpr double kLowest = -708., kHighest = 709.;
  static constexpr double kLog2High = 0x1.62e42feep-1, kLog2Low = 0x1.a39ef35793c76p-33;
  static constexpr int kExpTerms = 13, kLogTerms = 11, kMillsTerms = 22;
};

// What is known of the sign of a number.
enum class Sign { any, positive, negative };

// exp(x) = scale (1 + rest) with scale a power of two and |rest| < 0.42. x is clamped to where that is a normal number;
// NaN stays NaN.
template <class T, Sign kSign = Sign::any>
struct Exponential {
  T scale, rest;

  SPARSENN_INLINE explicit Exponential(T x) {
    using Format = FloatFormat<T>;
    using Bits = typename Format::Bits;
    if constexpr (kSign != Sign::positive) x = x < Format::kLowest ? Format::kLowest : x;
    if constexpr (kSign != Sign::negative) x = x > Format::kHighest ? Format::kHighest : x;
    const T rounded = multiply_add(x, T(1.4426950408889634), Format::kRounder), n = rounded - Format::kRounder;
    const T r = multiply_add(n, -Format::kLog2Low, multiply_add(n, -Format::kLog2High, x));
    scale = bit_cast<T>((bit_cast<Bits>(rounded) + Format::kBias) << Format::kMantissa);
    // Taylor's series: |r| <= log(2) / 2.
    constexpr double kInverse[14] = {
        1.,        1.,         1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,
        1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    T sum = T(kInverse[Format::kExpTerms]);
    SPARSENN_UNROLL_ALL
    for (int k = Format::kExpTerms - 1; k > 1; --k) sum = multiply_add(sum, r, T(kInverse[k]));
    rest = multiply_add(r * r, sum, r);
  }

  SPARSENN_INLINE T value() const { return multiply_add(scale, rest, scale); }
  SPARSENN_INLINE T minus_one() const { return multiply_add(scale, rest, scale - T(1)); }
};

template <Sign kSign = Sign::any, class T>
SPARSENN_INLINE T exponential(T x) {
  return Exponential<T, kSign>(x).value();
}

// log(x) for normal x > 0; NaN for NaN and infinity.
template <class T>
SPARSENN_INLINE T logarithm(T x) {
  using Format = FloatFormat<T>;
  using Bits = typename Format::Bits;
  using Signed = std::make_signed_t<Bits>;
  const Bits bits = bit_cast<Bits>(x);
  const Signed exponent = static_cast<Signed>(bits - Format::kRootHalf) >> Format::kMantissa;
  const T m = bit_cast<T>(bits - (static_cast<Bits>(exponent) << Format::kMantissa));
  // log(m) = 2 artanh(s) = 2 (s + s^3 / 3 + ...) with |s| < 0.172
  const T s = (m - T(1)) / (m + T(1)), square = s * s;
  T sum = T(0);
  SPARSENN_UNROLL_ALL
  for (int k = Format::kLogTerms; k > 0; --k) sum = multiply_add(sum, square, T(1) / T(2 * k + 1));
  const T n = static_cast<T>(exponent), log_m = multiply_add(s * square, sum * 2, s * 2);
  return multiply_add(n, Format::kLog2High, multiply_add(n, Format::kLog2Low, log_m)) + (x - x);
}

// The normal distribution's P(Z > u) and density at |z|.
template <class T>
struct Normal {
  T above, density;

  // above = density * Mills' ratio, which for t = (u - 4) / (u + 4) is (1 - t) sqrt(2 pi) times a polynomial in t: the
  // interpolant in Chebyshev's nodes for 0 <= u <= 14 (39 in float64), off by 1.5e-8 (2e-16) of itself at most.
  SPARSENN_INLINE explicit Normal(T z) {
    constexpr int kTerms = FloatFormat<T>::kMillsTerms;
    constexpr double kFloat[10] = {0.0944106423,   -0.0759870786,   0.0483920823,   -0.0233153072, 0.00755088965,
                                   -0.00094130408, -0.000441076004, 0.000196686879, 2.56929669e-5, -1.47669302e-5};
    constexpr double kDouble[22] = {
        0.0944106413019689393,    -0.0759870802464863451,    0.0483921750927760762,    -0.0233152322449742738,
        0.00754957186139864057,   -0.000942523620324073366,  -0.000434961546387512691, 0.000203852299996612364,
        0.0000166680416458335111, -0.0000288868114806491678, -2.38532018673230057e-7,  4.39282922352810801e-6,
        8.95107361709285827e-8,   -7.39281059291605381e-7,   -7.83321292164900236e-8,  1.26366209836505974e-7,
        3.30102014970526082e-8,   -1.79745198875811161e-8,   -9.31780837212163791e-9,  9.54333476807424966e-10,
        1.43735700825914568e-9,   2.56821453550801277e-10};
    const T u = std::fabs(z), inverse = T(1) / (u + T(4)), t = (u - T(4)) * inverse;
    T sum = T(0);
    SPARSENN_UNROLL_ALL
    for (int k = kTerms - 1; k >= 0; --k) {
      if constexpr (sizeof(T) == 4) {
        sum = multiply_add(sum, t, T(kFloat[k]));
      } else {
        sum = multiply_add(sum, t, T(kDouble[k]));
      }
    }
    const T bell = exponential<Sign::negative>(z * z * T(-0.5));
    above = bell * (sum * (inverse * T(8)));
    density = bell * T(0.3989422804014327);
  }
};

}  // namespace sparsenn
