// The product of an input and a weight that is composed where it is needed, a block of rows at a time, and never
// written out.
//
// Up to kFewRows rows of input, sums run along the memory of both (Dots). From there on the input is packed, so that a
// vector holds one column of many of its rows, and the composed weights are splat (Tile); then the work is that of a
// matrix product, and composing costs a share of 1 / batch of it.
#include "cpu/parallel.h"
#include "cpu/spectral.h"
#include "cpu/tiles.h"

namespace sparsenn {
namespace {

using cpu::kDepth;
using cpu::kPartials;
using cpu::Tiles;

constexpr int64_t kFewRows = 12;
constexpr int64_t kBatch = 256;      // rows of input that are packed at a time
constexpr int64_t kOutputs = 48;     // outputs that a thread takes at a time; every tile's rows divide it
constexpr int64_t kFewOutputs = 24;  // the same for a few rows

template <class T>
struct Forward {
  const T *input, *bias;
  T* output;
  int64_t batch;
  const cpu::Eigen<T>& eigen;
};

template <class A>
int64_t aligned(int64_t size) {
  return (size + kPartials<A> - 1) / kPartials<A> * kPartials<A>;
}

// Composes entries [begin, begin + size) of rows [first, first + count) into rows of kDepth.
template <class T, class A>
void compose_rows(const cpu::Eigen<T>& eigen, int64_t first, int64_t count, int64_t begin, int64_t size, A* weights) {
  for (int64_t r = 0; r < count; ++r) {
    cpu::compose(cpu::Compose<T, A>{eigen.row(first + r) + begin, eigen.start() ? eigen.start() + begin : nullptr,
                                    eigen.end(first + r), size, weights + r * kDepth});
  }
}

// phi is read where it lies, as far as it fills vectors and rows. Of what is left the weights are composed beforehand,
// with zeros behind them: in registers, an infinite eigenvalue would make NaN of a zero that fills up a row.
template <class T>
void few_rows(const Forward<T>& problem) {
  using A = accumulator_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;  // else phi is converted first
  const auto& [input, bias, output, batch, eigen] = problem;
  const Tiles<A>& tiles = cpu::tiles<A>();
  const int64_t in = eigen.columns, out = eigen.rows, padded = aligned<A>(in);
  std::vector<A> x(batch * padded), ones(eigen.start() ? padded : 0, A(1));
  cpu::copy_padded(input, in, batch, in, x.data(), batch, padded);
  const std::vector<A> as_they_are(kFewOutputs, eigen.start() ? A(0) : A(-1));
  cpu::for_each_part((out + kFewOutputs - 1) / kFewOutputs, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> ends(kFewOutputs), sums(kFewOutputs * tiles.dots[0].columns), composed(kFewOutputs * padded);
    for (int64_t o0 = begin * kFewOutputs; o0 < std::min(out, end * kFewOutputs); o0 += kFewOutputs) {
      const int64_t outputs = std::min(kFewOutputs, out - o0);
      for (int64_t r = 0; r < outputs; ++r) ends[r] = eigen.end(o0 + r);
      for (int64_t b = 0; b < batch;) {
        const cpu::Dots<A>& dots = tiles.dots_for(batch - b);
        for (int64_t r0 = 0; r0 < outputs; r0 += dots.rows) {
          const int64_t count = std::min(dots.rows, outputs - r0);
          const int64_t direct = kDirect && count == dots.rows ? in / kPartials<A> * kPartials<A> : 0,
                        rest = padded - direct;
          for (int64_t r = 0; rest && r < count; ++r) {
            A* const to = composed.data() + r * rest;
            cpu::compose(cpu::Compose<T, A>{eigen.row(o0 + r0 + r) + direct,
                                            eigen.start() ? eigen.start() + direct : nullptr, ends[r0 + r], in - direct,
                                            to});
            std::fill(to + in - direct, to + rest, A(0));
          }
          const A* const right = x.data() + b * padded;
          const cpu::Piece<A> pieces[2] = {{direct, reinterpret_cast<const A*>(eigen.row(o0 + r0)), in, eigen.start(),
                                            ends.data() + r0, right, padded},
                                           {rest, composed.data(), rest, eigen.start() ? ones.data() : nullptr,
                                            as_they_are.data(), right + direct, padded}};
          dots.run(pieces, sums.data());
          for (int64_t n = 0; n < dots.columns; ++n) {
            T* const to = output + (b + n) * out + o0 + r0;
            for (int64_t r = 0; r < count; ++r) {
              const A sum = sums[r * dots.columns + n];
              to[r] = store<T>(bias ? sum + load(bias[o0 + r0 + r]) : sum);
            }
          }
        }
        b += dots.columns;
      }
    }
  });
}

// Packs rows [first, first + count) of the input: for each depth of kDepth strips of columns, one for each row, next to
// each other. Rows that fill up the last strip are zeros.
template <class T, class A>
void pack_columns(const Tiles<A>& tiles, const T* input, int64_t in, int64_t first, int64_t count, A* packed) {
  const int64_t padded = tiles.padded(count);
  cpu::for_each_part((in + kDepth - 1) / kDepth, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> rows(tiles.width() * kDepth);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t k0 = chunk * kDepth, size = std::min(kDepth, in - k0);
      for (int64_t b0 = 0; b0 < padded; b0 += tiles.width()) {
        const int64_t width = std::min(tiles.width(), padded - b0), real = std::min(width, count - b0);
        A* const strip = packed + k0 * padded + b0 * size;
        const T* const from = input + (first + b0) * in + k0;
        const cpu::Transpose<A> transpose = tiles.transpose[width > tiles.lanes];
        if (std::is_same_v<T, A> && real == width) {
          transpose(size, reinterpret_cast<const A*>(from), in, strip, width);
        } else {
          cpu::copy_padded(from, in, real, size, rows.data(), width, size);
          transpose(size, rows.data(), size, strip, width);
        }
      }
    }
  });
}

// Adds the bias to `outputs` rows of sums and writes their first `count` columns as rows.
template <class T, class A>
void write_transposed(const Tiles<A>& tiles, A* sums, int64_t stride, const T* bias, int64_t outputs, int64_t count,
                      T* to, int64_t to_stride) {
  for (int64_t o = 0; bias && o < outputs; ++o) {
    const A shift = load(bias[o]);
    SPARSENN_INDEPENDENT
    for (int64_t b = 0; b < count; ++b) sums[o * stride + b] += shift;
  }
  int64_t done = 0;
  if constexpr (std::is_same_v<T, A>) {
    for (; done + tiles.lanes <= outputs; done += tiles.lanes) {
      tiles.transpose[0](count, sums + done * stride, stride, to + done, to_stride);
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    for (int64_t o = done; o < outputs; ++o) to[b * to_stride + o] = store<T>(sums[o * stride + b]);
  }
}

template <class T>
void many_rows(const Forward<T>& problem) {
  using A = accumulator_t<T>;
  const auto& [input, bias, output, batch, eigen] = problem;
  const Tiles<A>& tiles = cpu::tiles<A>();
  const int64_t in = eigen.columns, out = eigen.rows;
  std::vector<A> packed(in * tiles.padded(std::min(batch, kBatch)));
  for (int64_t first = 0; first < batch; first += kBatch) {
    const int64_t count = std::min(kBatch, batch - first), padded = tiles.padded(count);
    pack_columns(tiles, input, in, first, count, packed.data());
    cpu::for_each_part((out + kOutputs - 1) / kOutputs, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> weights(kOutputs * kDepth), sums(kOutputs * padded);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t o0 = block * kOutputs, outputs = std::min(kOutputs, out - o0);
        std::fill(sums.begin(), sums.end(), A(0));
        for (int64_t k = 0; k < in; k += kDepth) {
          const int64_t size = std::min(kDepth, in - k);
          compose_rows(eigen, o0, outputs, k, size, weights.data());
          // what is composed next: the block's next columns, or the next block's first
          const bool last = k + kDepth >= in;
          const int64_t next = last ? o0 + kOutputs : o0, from = last ? 0 : k + kDepth;
          for (int64_t o = 0; o < outputs; o += tiles.rows()) {
            const cpu::Tile<A>& tile = tiles.with(std::min(tiles.rows(), outputs - o));
            const cpu::Ahead ahead = eigen.ahead(next + o, from);
            for (int64_t b = 0; b < padded; b += tiles.width()) {
              tile.by_row[padded - b > tiles.lanes](size, weights.data() + o * kDepth,
                                                    packed.data() + k * padded + b * size, sums.data() + o * padded + b,
                                                    padded, ahead);
            }
          }
        }
        write_transposed(tiles, sums.data(), padded, bias ? bias + o0 : nullptr, outputs, count,
                         output + first * out + o0, out);
      }
    });
  }
}

}  // namespace

void spectral_linear(const void* input, const Spectrum& spectrum, const void* bias, int64_t batch, void* output) {
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    const cpu::Eigen<T> eigen(spectrum);
    const Forward<T> problem{static_cast<const T*>(input), static_cast<const T*>(bias), static_cast<T*>(output), batch,
                             eigen};
    batch <= kFewRows ? few_rows(problem) : many_rows(problem);
  });
}

}  // namespace sparsenn
