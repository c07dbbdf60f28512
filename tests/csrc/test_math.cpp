// csrc/math against long double.
#include <cfloat>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "launchers.h"
#include "math/activation.h"
#include "math/factorized_sgd.h"
#include "math/hadamard.h"
#include "math/permutation.h"
#include "math/prox_sgd.h"
#include "math/scalar.h"
#include "tensors.h"

using namespace sparsenn;

namespace {

static_assert(LDBL_MANT_DIG > 60, "these tests need a long double that is wider than a double");

// The distance from a value to the truth, in units of the spacing of T's numbers around `scale`.
template <class T>
long double ulps(T value, long double truth, long double scale) {
  const long double spacing =
      std::ldexp(1.0L, std::ilogb(std::max<long double>(std::fabs(scale), std::numeric_limits<T>::min())) -
                           std::numeric_limits<T>::digits + 1);
  return std::fabs(value - truth) / spacing;
}

template <int D, class T>
void draw(std::mt19937_64& random, T (&values)[D], int zeros = 0) {
  std::normal_distribution<T> normal;
  for (T& x : values) x = normal(random);
  for (int k = 0; k < zeros && k < D; ++k) values[(random() + k) % D] = T(0);
}

template <int D, class T>
long double product_without(const T (&values)[D], int skip) {
  long double result = 1;
  for (int d = 0; d < D; ++d) result *= d == skip ? 1.0L : static_cast<long double>(values[d]);
  return result;
}

template <class T, class Body>
void for_each_depth(const Body& body) {
  [&]<int... D>(std::integer_sequence<int, D...>) {
    (body(std::integral_constant<int, D + 1>{}), ...);
  }(std::make_integer_sequence<int, kMaxUnrolledDepth>{});
}

// D - 1 products, each off by half a unit at most; near 2 in a binade the units of truth and value differ by a factor
// of 2.
template <class T>
void products() {
  std::mt19937_64 random(1);
  for_each_depth<T>([&](auto depth) {
    constexpr int D = depth;
    for (int n = 0; n < 20000; ++n) {
      T factors[D], others[D];
      draw(random, factors, n % 4 == 3 ? D : n % 4);
      const long double truth = product_without(factors, -1);
      CHECK(ulps(product(factors), truth, truth) <= D, "the product of ", D, " factors is off");
      leave_one_out(factors, others);
      for (int d = 0; d < D; ++d) {
        const long double other = product_without(factors, d);
        CHECK(ulps(others[d], other, other) <= D, "all but factor ", d, " of ", D, ": ", others[d], ", not ", other);
        CHECK((others[d] == 0) == (other == 0),
              "a partial derivative is 0 where it should not be, or the other way round");
      }
    }
  });
}

TEST(products_equal_long_double_float32) { products<float>(); }
TEST(products_equal_long_double_float64) { products<double>(); }

TEST(leave_one_out_is_exact_at_zeros) {
  const double one[3] = {0, 2, 3}, two[3] = {0, 2, 0}, all[3] = {0, 0, 0};
  double others[3];
  leave_one_out(one, others);
  CHECK(others[0] == 6 && others[1] == 0 && others[2] == 0);
  leave_one_out(two, others);
  CHECK(others[0] == 0 && others[1] == 0 && others[2] == 0);
  leave_one_out(all, others);
  CHECK(others[0] == 0 && others[1] == 0 && others[2] == 0);
  const double single[1] = {0};
  double alone[1];
  leave_one_out(single, alone);
  CHECK(alone[0] == 1);
}

// The step as a formula in long double. Each result is a sum of a few terms; its error is bounded by units of the
// largest.
template <int D, bool kMomentum, class T>
void steps(const FactorizedSgdOptions& options, std::mt19937_64& random) {
  using Long = long double;
  const FactorizedSgd<T> rule(options, options.lr.value, options.lam.value, D);
  for (int n = 0; n < 500; ++n) {
    T factors[D], momenta[D] = {}, before[D], velocity[D] = {}, gradient[1];
    draw(random, factors, n % 3);
    draw(random, gradient);
    if constexpr (kMomentum) draw(random, momenta);
    std::copy_n(factors, D, before);
    std::copy_n(momenta, D, velocity);
    const T weight = factorized_sgd_step<D, kMomentum>(gradient[0], factors, momenta, rule);

    const Long decay = options.weight_decay * product_without(before, -1);
    const Long upstream = (options.maximize ? -1 : 1) * Long(gradient[0]) + decay;
    const Long upstream_scale = std::fabs(Long(gradient[0])) + std::fabs(decay);
    for (int d = 0; d < D; ++d) {
      const Long other = product_without(before, d), pull = 2.0L * options.lam.value / D * before[d];
      Long step = upstream * other + pull, scale = upstream_scale * std::fabs(other) + std::fabs(pull);
      if (kMomentum) {
        const Long moved = options.momentum * velocity[d] + (1.0L - options.dampening) * step;
        const Long moved_scale =
            std::fabs(options.momentum * velocity[d]) + std::fabs(1.0L - options.dampening) * scale;
        CHECK(ulps(momenta[d], moved, moved_scale) <= 4 * D + 8, "momentum ", d, " of ", D, " is ", momenta[d],
              ", not ", moved);
        step = options.nesterov ? step + options.momentum * moved : moved;
        scale = options.nesterov ? scale + std::fabs(options.momentum) * moved_scale : moved_scale;
      }
      const Long truth = before[d] - options.lr.value * step;
      CHECK(ulps(factors[d], truth, std::fabs(Long(before[d])) + options.lr.value * scale) <= 4 * D + 8, "factor ", d,
            " of ", D, " is ", factors[d], ", not ", truth);
    }
    CHECK(weight == product(factors), "the weight is not the product of the new factors");
  }
}

template <class T>
void all_steps() {
  std::mt19937_64 random(2);
  for_each_depth<T>([&](auto depth) {
    for (int bits = 0; bits < 16; ++bits) {
      FactorizedSgdOptions options{{0.15, nullptr, false},
                                   {bits & 1 ? 3e-2 : 0.0, nullptr, false},
                                   0.9,
                                   bits & 2 ? 0.25 : 0.0,
                                   bits & 4 ? 1e-2 : 0.0,
                                   false,
                                   (bits & 8) != 0};
      steps<depth, false, T>(options, random);
      steps<depth, true, T>(options, random);
      options.dampening = 0;
      options.nesterov = true;
      steps<depth, true, T>(options, random);
    }
  });
}

TEST(steps_equal_long_double_float32) { all_steps<float>(); }
TEST(steps_equal_long_double_float64) { all_steps<double>(); }

// The proximal step as a formula in long double: the weight is the minimizer of (w - z)^2 / 2 + t |w|.
template <class T>
void prox_steps() {
  using Long = long double;
  std::mt19937_64 random(5);
  for (int bits = 0; bits < 32; ++bits) {
    const ProxSgdOptions options{{0.15, nullptr, false}, bits & 1 ? 0.9 : 0.0, bits & 2 ? 0.25 : 0.0,
                                 bits & 4 ? 1e-2 : 0.0,  (bits & 8) != 0,      (bits & 16) != 0};
    const bool with_momentum = options.momentum != 0;
    const ProxSgd<T> rule(options, options.lr.value, with_momentum);
    for (int n = 0; n < 2000; ++n) {
      T drawn[4];
      draw(random, drawn, n % 2);
      const T weight = drawn[0], grad = drawn[1], before = drawn[2], lam = std::fabs(drawn[3]);
      T momentum = before;
      const T after = with_momentum ? prox_sgd_step<T, true>(weight, grad, momentum, true, lam, rule)
                                    : prox_sgd_step<T, false>(weight, grad, momentum, true, lam, rule);
      Long step = (options.maximize ? -1 : 1) * Long(grad) + options.weight_decay * Long(weight), effective_lr = 0.15L;
      if (with_momentum) {
        const Long moved = options.momentum * Long(before) + (1.0L - options.dampening) * step;
        CHECK(ulps(momentum, moved, 3) <= 8, "the momentum is ", momentum, ", not ", moved);
        step = options.nesterov ? step + options.momentum * moved : moved;
        effective_lr *= (1.0L - options.dampening) / (1.0L - options.momentum);
      }
      const Long z = weight - 0.15L * step, t = effective_lr * lam;
      const Long truth = z > t ? z - t : z < -t ? z + t : 0;
      CHECK(ulps(after, truth, 4) <= 16, "the weight is ", after, ", not ", truth);
      CHECK(after != 0 || !std::signbit(after), "a zero is negative");
    }
  }
}

TEST(proximal_steps_equal_long_double_float32) { prox_steps<float>(); }
TEST(proximal_steps_equal_long_double_float64) { prox_steps<double>(); }

template <class T>
void soft_thresholds() {
  constexpr T kInf = std::numeric_limits<T>::infinity(), kNan = std::numeric_limits<T>::quiet_NaN(),
              kTiny = std::numeric_limits<T>::denorm_min();
  const T x[] = {0, -T(0), 1, -1, 2, -2, T(1.5), kTiny, -kTiny, kInf, -kInf};
  for (const T value : x) {
    for (const T t : {T(0), T(1), kTiny, T(1.5)}) {
      const T truth = value > t ? value - t : value < -t ? value + t : T(0);
      const T found = soft_thresholded(value, t);
      CHECK(found == truth && (found != 0 || !std::signbit(found)), value, " by ", t, " is ", found);
      CHECK(soft_threshold_gradient(T(3), value, t) == (std::fabs(value) > t ? 3 : 0), "the gradient at ", value);
    }
    CHECK(std::isnan(soft_thresholded(value, kNan)), "a threshold that is NaN");
    CHECK(soft_thresholded(value, kInf) == 0, "an infinite threshold leaves nothing of ", value);
  }
  CHECK(std::isnan(soft_thresholded(kNan, T(0))) && std::isnan(soft_thresholded(kNan, kInf)), "NaN stays NaN");
  CHECK(soft_threshold_gradient(kNan, T(1), T(2)) == 0, "what is cut off has no part in the gradient");
}

TEST(soft_thresholds_at_the_edges_float32) { soft_thresholds<float>(); }
TEST(soft_thresholds_at_the_edges_float64) { soft_thresholds<double>(); }

template <class W>
void half_zeros() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const W half{static_cast<uint16_t>(bits)};
    CHECK(is_zero(half) == (load(half) == 0), "pattern ", bits);
    const W again = store_thresholded<W>(load(half));
    CHECK(std::isnan(load(half)) || again.bits == (load(half) == 0 ? 0 : bits), "pattern ", bits, " is stored as ",
          again.bits);
  }
  CHECK(store_thresholded<W>(-std::numeric_limits<float>::denorm_min()).bits == 0, "what rounds to zero is negative");
}

TEST(zeros_of_half_types) { half_zeros<bfloat16>(), half_zeros<float16>(); }

TEST(flag_chooses) {
  CHECK(Flag<float>(true).choose(2, 3) == 2 && Flag<float>(false).choose(2, 3) == 3);
  CHECK(Flag<double>(true).choose(NAN, 3) != 3 && Flag<double>(false).choose(NAN, 3) == 3);
}

// A half type by its definition: `digits` bits of significand with the leading one, exponents from `least` on.
struct Format {
  int digits, least, exponent_bits;

  long double value(uint16_t bits) const {
    const int fraction_bits = digits - 1;
    const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const long double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return fraction ? NAN : sign * INFINITY;
    const long double significand = exponent ? fraction + (1 << fraction_bits) : fraction;
    return sign * std::ldexp(significand, std::max(exponent, 1) - 1 + least - fraction_bits);
  }

  // Round to nearest, ties to even, in exact arithmetic.
  long double rounded(float x) const {
    if (x == 0 || !std::isfinite(x)) return x;
    const int exponent = std::max(std::ilogb(x), least);
    const long double unit = std::ldexp(1.0L, exponent - digits + 1);
    const long double result = std::nearbyint(static_cast<long double>(x) / unit) * unit;
    const long double largest = std::ldexp(2.0L - std::ldexp(1.0L, 1 - digits), (1 << (exponent_bits - 1)) - 1);
    return std::fabs(result) > largest ? std::copysign(static_cast<long double>(INFINITY), static_cast<long double>(x))
                                       : result;
  }
};
const Format kBfloat16{8, -126, 8}, kFloat16{11, -14, 5};

template <class T>
void all_patterns(const Format& format) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const T half{static_cast<uint16_t>(bits)};
    const float value = load(half);
    const long double truth = format.value(half.bits);
    if (std::isnan(truth)) {
      CHECK(std::isnan(value) && std::isnan(load(store<T>(value))), "pattern ", bits, " is NaN and does not stay so");
      continue;
    }
    CHECK(value == truth && std::signbit(value) == std::signbit(truth), "pattern ", bits, " loads as ", value, ", not ",
          truth);
    CHECK(store<T>(value).bits == half.bits, "pattern ", bits, " comes back as ", store<T>(value).bits);
  }
}

TEST(all_patterns_round_trip_bfloat16) { all_patterns<bfloat16>(kBfloat16); }
TEST(all_patterns_round_trip_float16) { all_patterns<float16>(kFloat16); }

template <class T>
void check_rounding(const Format& format, float x) {
  const float value = load(store<T>(x));
  if (std::isnan(x)) return CHECK(std::isnan(value), "NaN became ", value);
  const long double truth = format.rounded(x);
  CHECK(value == truth && std::signbit(value) == std::signbit(x), x, " is rounded to ", value, ", not ", truth);
}

template <class T>
void rounding(const Format& format) {
  std::mt19937 random(3);
  for (int n = 0; n < 4000000; ++n) check_rounding<T>(format, bit_cast<float>(static_cast<uint32_t>(random())));
  std::uniform_real_distribution<float> exponent(-30, 20);
  for (int n = 0; n < 1000000; ++n)
    check_rounding<T>(format, std::copysign(std::exp2(exponent(random)), n % 2 ? -1.f : 1.f));
  // Every half, every middle between two neighbours, and the floats next to each.
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float a = static_cast<float>(format.value(low));
    for (const float x : {a, static_cast<float>((format.value(low) + format.value(high)) / 2)}) {
      check_rounding<T>(format, x);
      if (!std::isfinite(x)) continue;
      check_rounding<T>(format, std::nextafter(x, INFINITY));
      check_rounding<T>(format, std::nextafter(x, -INFINITY));
    }
  }
  const float limits[] = {0.f,
                          -0.f,
                          INFINITY,
                          -INFINITY,
                          NAN,
                          FLT_MAX,
                          -FLT_MAX,
                          FLT_MIN,
                          65504.f,
                          65519.99f,
                          65520.f,
                          0x1p-24f,
                          0x1p-25f,
                          std::nextafter(0x1p-25f, 1.f),
                          std::numeric_limits<float>::denorm_min(),
                          0x1p-133f,
                          0x1p-134f};
  for (const float x : limits) check_rounding<T>(format, x), check_rounding<T>(format, -x);
  for (const uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
    check_rounding<T>(format, bit_cast<float>(nan));
  }
}

TEST(rounds_to_nearest_even_bfloat16) { rounding<bfloat16>(kBfloat16); }
TEST(rounds_to_nearest_even_float16) { rounding<float16>(kFloat16); }

// Relative errors in units of the type's spacing at 1, over a range that takes in every branch of the formulas.
template <class T>
void activations(long double limit) {
  const long double unit = std::numeric_limits<T>::epsilon() / 2, pi = 3.14159265358979323846264338L;
  for (double at = -20; at < 20; at += 0.00173) {
    const T z = static_cast<T>(at);
    const long double x = z, tanh = std::tanh(x), sigmoid = 1 / (1 + std::exp(-x));
    const long double below = std::erfc(-x / std::sqrt(2.0L)) / 2, density = std::exp(-x * x / 2) / std::sqrt(2 * pi);
    T slope;
    const auto near = [&](long double value, long double truth, long double scale, const char* name) {
      CHECK(std::fabs(value - truth) <= limit * unit * scale, name, " at ", at, " is ", value, ", not ", truth);
    };
    near(exponential(z), std::exp(x), std::exp(x), "exp");
    near(logarithm(exponential(z)), x, std::max(1.0L, std::fabs(x)), "log of exp");
    near(activation<Activation::tanh>(z, slope), tanh, std::fabs(tanh), "tanh");
    near(slope, 1 - tanh * tanh, 1, "the slope of tanh");
    near(activation<Activation::sigmoid>(z, slope), sigmoid, sigmoid, "sigmoid");
    near(slope, sigmoid * (1 - sigmoid), 1, "the slope of sigmoid");
    near(activation<Activation::gelu>(z, slope), x * below, std::max(1.0L, std::fabs(x)), "gelu");
    near(slope, below + x * density, 1, "the slope of gelu");
    near(activation<Activation::relu>(z, slope), std::max(x, 0.0L), 1, "relu");
    CHECK(slope == (z > 0), "the slope of relu");
  }
}

TEST(activations_equal_long_double_float32) { activations<float>(8); }
TEST(activations_equal_long_double_float64) { activations<double>(8); }

template <class T>
void activations_of_no_number() {
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  T slope;
  CHECK(activation<Activation::tanh>(infinity, slope) == 1 && activation<Activation::tanh>(-infinity, slope) == -1);
  CHECK(activation<Activation::sigmoid>(infinity, slope) == 1);
  CHECK(activation<Activation::tanh>(T(1e-30), slope) == T(1e-30), "tanh is not exact near 0");
  CHECK(std::isnan(activation<Activation::relu>(nan, slope)) && std::isnan(activation<Activation::tanh>(nan, slope)));
  CHECK(std::isnan(activation<Activation::sigmoid>(nan, slope)) &&
        std::isnan(activation<Activation::gelu>(nan, slope)));
  CHECK(std::isnan(logarithm(nan)), "the logarithm of NaN is a number");
}

TEST(activations_of_no_number_float32) { activations_of_no_number<float>(); }
TEST(activations_of_no_number_float64) { activations_of_no_number<double>(); }

// Numbers that sparsenn.ops.permutation gives.
TEST(orders_are_those_of_the_definition) {
  const int64_t all[] = {7, 5, 3, 8, 0, 1, 4, 9, 2, 6}, some[] = {2383, 1289, 2647, 671},
                last[] = {247729, 995060, 348170};
  const Permutation ten(10, 7, 3), many(5120, -3, 12);
  const Permutation most((1 << 20) + 7, std::numeric_limits<int64_t>::min() + 5, 1000000);
  for (int i = 0; i < 10; ++i) CHECK(ten(i) == all[i], "place ", i, " of ten");
  for (int i = 0; i < 4; ++i) CHECK(many(i) == some[i], "place ", i, " of 5120");
  for (int i = 0; i < 3; ++i) CHECK(most((1 << 20) + 4 + i) == last[i], "place ", i, " of the last three");
}

TEST(orders_visit_every_sample_once) {
  for (const int64_t size : {0, 1, 2, 3, 5, 12, 255, 256, 257, 5120, 65537}) {
    std::vector<bool> seen(size, false);
    const Permutation order(size, size, 1);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t sample = order(i);
      CHECK(sample >= 0 && sample < size && !seen[sample], "sample ", sample, " of ", size);
      seen[sample] = true;
    }
  }
}

}  // namespace

MAIN()
