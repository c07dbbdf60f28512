// The gradients of a spectral layer in one walk over phi: strips of columns, and in each blocks of rows, whose weights
// are composed for the input's gradient, and for which the gradient of the weight is formed and at once taken apart
// into those of phi and the eigenvalues. Neither the weight nor its gradient is ever whole in memory.
//
// Up to kFewRows rows of input a sweep over a few rows of phi does all of it in registers; from there on it is done by
// tiles, in blocks that stay in the cache. Where the strips are equally wide, both add in the same order.
#include "cpu/parallel.h"
#include "cpu/spectral.h"
#include "cpu/tiles.h"

namespace sparsenn {
namespace {

using cpu::kDepth;
using cpu::kPartials;
using cpu::Tiles;

constexpr int64_t kStrip = 256;   // columns
constexpr int64_t kSwept = 2048;  // numbers of the input that a sweep meets at a time, twice as many in long rows
constexpr int64_t kFewRows = 32;
constexpr int64_t kOutputs = 96;  // rows; every tile's divide it

// Columns [0, rows) of `columns` rows each, as tiles take them: element (r, c) of each group of tiles.rows() rows lies
// next to (r + 1, c). read(r, c) gives an element.
template <class A, class Read>
std::vector<A> pack_rows(const Tiles<A>& tiles, int64_t rows, int64_t columns, const Read& read) {
  std::vector<A> packed((rows + tiles.rows()) * columns);
  cpu::for_each_part((rows + tiles.rows() - 1) / tiles.rows(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * tiles.rows(), real = std::min(tiles.rows(), rows - first);
      const int64_t width = tiles.with(real).rows;
      A* to = packed.data() + first * columns;
      for (int64_t c = 0; c < columns; ++c, to += width) {
        for (int64_t r = 0; r < real; ++r) to[r] = read(first + r, c);
      }
    }
  });
  return packed;
}

template <class T>
struct Backward {
  using A = accumulator_t<T>;

  const T *grad, *input;
  int64_t batch;
  const cpu::Eigen<T>& eigen;
  T *phi_grad, *in_grad, *out_grad, *input_grad;
  const Tiles<A>& tiles = cpu::tiles<A>();
  int64_t in = eigen.columns, out = eigen.rows;
  bool of_weight = phi_grad || in_grad || out_grad;
  bool few = of_weight && batch <= kFewRows;  // for sweeps; blocks are kStrip wide
  // The bits of row_sums depend on it, which are of the weight: there the batch alone decides.
  int64_t strip = few ? std::clamp((in + kStrip - 1) / kStrip * kStrip, kStrip, swept()) : kStrip;
  int64_t strips = (in + strip - 1) / strip;
  std::vector<A> by_output{}, by_batch{};  // grad, packed for the weight's gradient and for the input's
  std::vector<A> row_sums{};               // lambda_out's gradient, less its sign, of each strip

  int64_t swept() const {
    return std::max(kStrip, (in > kSwept ? 2 : 1) * kSwept / std::max<int64_t>(1, batch) / kStrip * kStrip);
  }

  void run() {
    if (out_grad) row_sums.resize(strips * out);
    if (few) {
      run_strips<Sweeps>();
      return;
    }
    if (of_weight)
      by_output = pack_rows(tiles, out, batch, [&](int64_t o, int64_t b) { return load(grad[b * out + o]); });
    if (input_grad)
      by_batch = pack_rows(tiles, batch, out, [&](int64_t b, int64_t o) { return load(grad[b * out + o]); });
    run_strips<Blocks>();
  }

  template <class Strip>
  void run_strips() {
    cpu::for_each_part(strips, 1, [&](int64_t begin, int64_t end) {
      Strip work(*this);
      for (int64_t n = begin; n < end; ++n) work.run(n, n * strip, std::min(strip, in - n * strip));
    });
    for (int64_t o = 0; out_grad && o < out; ++o) {
      A sum(0);
      for (int64_t n = 0; n < strips; ++n) sum += row_sums[n * out + o];
      out_grad[o] = store<T>(-sum);
    }
  }

  // What a strip has summed up over all rows: `size` columns from `begin` on, the input's in rows of a strip.
  void write(int64_t begin, int64_t size, const A* input_sums, const A* column_sums) const {
    for (int64_t b = 0; input_grad && b < batch; ++b) {
      cpu::convert(input_sums + b * strip, size, input_grad + b * in + begin);
    }
    if (in_grad) cpu::convert(column_sums, size, in_grad + begin);
  }

  // What one thread needs to sweep over strips. What is not wanted is computed all the same, and left in `unwanted`.
  struct Sweeps {
    Backward& of;
    const cpu::Sweep<A>& sweep = of.tiles.sweep;
    int64_t strip = of.strip;
    static constexpr bool kDirect = std::is_same_v<T, A>;
    int64_t room = kDirect ? kPartials<A> : strip;  // for what is copied of a row
    std::vector<A> x, x_grads, columns, phi, unwanted, grads, ends, partials;

    explicit Sweeps(Backward& of)
        : of(of),
          x(of.batch * strip),
          x_grads(of.batch * strip),
          columns(strip),
          phi(sweep.rows * room),
          unwanted(sweep.rows * (of.phi_grad ? room : strip)),
          grads(of.batch * sweep.rows),
          ends(sweep.rows),
          partials(sweep.rows * kPartials<A>) {}

    void run(int64_t n, int64_t begin, int64_t size) {
      cpu::copy_padded(of.input + begin, of.in, of.batch, size, x.data(), of.batch, strip);
      std::fill(x_grads.begin(), x_grads.end(), A(0));
      std::fill(columns.begin(), columns.end(), A(0));
      const int64_t together = of.out / sweep.rows * sweep.rows;
      for (int64_t o = 0; o < together; o += sweep.rows) add(n, begin, size, o, sweep.rows, sweep.run);
      for (int64_t o = together; o < of.out; ++o) add(n, begin, size, o, 1, sweep.run_one);
      of.write(begin, size, x_grads.data(), columns.data());
    }

    // Rows [o, o + count), which `sweep_rows` takes at a time.
    void add(int64_t n, int64_t begin, int64_t size, int64_t o, int64_t count,
             void (*sweep_rows)(const cpu::Rows<A>&)) {
      const int64_t at = o * of.in + begin;
      for (int64_t b = 0; b < of.batch; ++b) {
        for (int64_t r = 0; r < count; ++r) grads[b * count + r] = load(of.grad[b * of.out + o + r]);
      }
      for (int64_t r = 0; r < count; ++r) ends[r] = of.eigen.end(o + r);
      std::fill(partials.begin(), partials.end(), A(0));
      const A* const starts = of.eigen.start() ? of.eigen.start() + begin : nullptr;
      // phi itself as far as it fills vectors, then a copy of what is left
      const int64_t direct = kDirect ? size / kPartials<A> * kPartials<A> : 0, rest = size - direct;
      if (direct) {
        A* const to = reinterpret_cast<A*>(of.phi_grad);
        sweep_rows({direct, of.batch, reinterpret_cast<const A*>(of.eigen.phi) + at, of.in, starts, ends.data(),
                    grads.data(), x.data(), strip, x_grads.data(), to ? to + at : unwanted.data(), to ? of.in : strip,
                    columns.data(), partials.data()});
      }
      if (rest) {
        cpu::copy_padded(of.eigen.phi + at + direct, of.in, count, rest, phi.data(), count, room);
        sweep_rows({rest, of.batch, phi.data(), room, starts ? starts + direct : nullptr, ends.data(), grads.data(),
                    x.data() + direct, strip, x_grads.data() + direct, unwanted.data(), room, columns.data() + direct,
                    partials.data()});
        for (int64_t r = 0; of.phi_grad && r < count; ++r) {
          T* const to = of.phi_grad + at + r * of.in + direct;
          cpu::convert(unwanted.data() + r * room, rest, to);
        }
      }
      for (int64_t r = 0; of.out_grad && r < count; ++r) {
        of.row_sums[n * of.out + o + r] = cpu::total(partials.data() + r * kPartials<A>);
      }
    }
  };

  // What one thread needs to work on strips in blocks of rows.
  struct Blocks {
    Backward& of;
    std::vector<A> inputs, weights, weight_grads, input_grads, columns;
    int64_t begin = 0, size = 0, padded = 0;

    explicit Blocks(Backward& of)
        : of(of),
          inputs(of.of_weight ? of.batch * kStrip : 0),
          weights(of.input_grad ? kOutputs * kStrip : 0),
          weight_grads(of.of_weight ? kOutputs * kStrip : 0),
          input_grads(of.input_grad ? (of.batch + of.tiles.rows()) * kStrip : 0),
          columns(kStrip) {}

    void run(int64_t n, int64_t first, int64_t count_of_columns) {
      begin = first, size = count_of_columns, padded = of.tiles.padded(size);
      if (of.of_weight) pack(inputs.data(), of.batch, [&](int64_t b) { return of.input + b * of.in + begin; });
      std::fill(input_grads.begin(), input_grads.end(), A(0));
      std::fill(columns.begin(), columns.end(), A(0));
      for (int64_t o = 0; o < of.out; o += kOutputs) {
        const int64_t count = std::min(kOutputs, of.out - o);
        if (of.input_grad) add_to_input(o, count);
        if (of.of_weight) backward_weight(n, o, count);
      }
      of.write(begin, size, input_grads.data(), columns.data());
    }

    // The strip's columns of `rows` rows in strips of a tile's width, zeros behind them.
    template <class Row>
    void pack(A* packed, int64_t rows, const Row& row) const {
      for (int64_t i = 0; i < padded; i += of.tiles.width()) {
        const int64_t width = std::min(of.tiles.width(), padded - i), real = std::min(width, size - i);
        for (int64_t r = 0; r < rows; ++r, packed += width) {
          const auto* const from = row(r) + i;
          cpu::convert(from, real, packed);
          std::fill(packed + real, packed + width, A(0));
        }
      }
    }

    void add_to_input(int64_t o, int64_t count) {
      A composed[kStrip];
      for (int64_t r = 0; r < count; ++r) {
        cpu::compose(cpu::Compose<T, A>{of.eigen.row(o + r) + begin,
                                        of.eigen.start() ? of.eigen.start() + begin : nullptr, of.eigen.end(o + r),
                                        size, composed});
        std::fill(composed + size, composed + padded, A(0));
        for (int64_t i = 0; i < padded; i += of.tiles.width()) {
          const int64_t width = std::min(of.tiles.width(), padded - i);
          std::copy_n(composed + i, width, weights.data() + i * count + r * width);
        }
      }
      for (int64_t b = 0; b < of.batch; b += of.tiles.rows()) {
        const cpu::Tile<A>& tile = of.tiles.with(std::min(of.tiles.rows(), of.batch - b));
        const A* const left = of.by_batch.data() + b * of.out + o * tile.rows;
        for (int64_t i = 0; i < padded; i += of.tiles.width()) {
          tile.by_column[padded - i > of.tiles.lanes](count, left, weights.data() + i * count,
                                                      input_grads.data() + b * kStrip + i, kStrip,
                                                      cpu::Ahead::none(weights.data() + i * count));
        }
      }
    }

    void backward_weight(int64_t n, int64_t o, int64_t count) {
      std::fill(weight_grads.begin(), weight_grads.end(), A(0));
      for (int64_t b = 0; b < of.batch; b += kDepth) {
        const int64_t depth = std::min(kDepth, of.batch - b);
        for (int64_t r = 0; r < count; r += of.tiles.rows()) {
          const cpu::Tile<A>& tile = of.tiles.with(std::min(of.tiles.rows(), of.out - o - r));
          const A* const left = of.by_output.data() + (o + r) * of.batch + b * tile.rows;
          for (int64_t i = 0; i < padded; i += of.tiles.width()) {
            const int64_t width = std::min(of.tiles.width(), padded - i);
            tile.by_column[padded - i > of.tiles.lanes](
                depth, left, inputs.data() + i * of.batch + b * width, weight_grads.data() + r * kStrip + i, kStrip,
                of.eigen.ahead(o + kOutputs + r, begin + std::max<int64_t>(0, std::min(i, size - depth))));
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = (o + r) * of.in + begin;
        A partials[kPartials<A>] = {};
        cpu::pull(weight_grads.data() + r * kStrip, of.eigen.phi + at,
                  of.eigen.start() ? of.eigen.start() + begin : nullptr, of.eigen.end(o + r), size,
                  of.phi_grad ? of.phi_grad + at : nullptr, of.in_grad ? columns.data() : nullptr,
                  of.out_grad ? partials : nullptr);
        if (of.out_grad) of.row_sums[n * of.out + o + r] = cpu::total(partials);
      }
    }
  };
};

}  // namespace

void spectral_linear_backward(const void* grad, const void* input, const Spectrum& spectrum, int64_t batch,
                              const SpectralGradients& gradients) {
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    using A = accumulator_t<T>;
    const cpu::Eigen<T> eigen(spectrum);
    const T* const upstream = static_cast<const T*>(grad);
    Backward<T> backward{upstream,
                         static_cast<const T*>(input),
                         batch,
                         eigen,
                         static_cast<T*>(gradients.phi),
                         static_cast<T*>(gradients.lambda_in),
                         static_cast<T*>(gradients.lambda_out),
                         static_cast<T*>(gradients.input)};
    if (backward.of_weight || backward.input_grad) backward.run();
    if (!gradients.bias) return;
    std::vector<A> sums(eigen.rows);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t o = 0; o < eigen.rows; ++o) sums[o] += load(upstream[b * eigen.rows + o]);
    }
    for (int64_t o = 0; o < eigen.rows; ++o) static_cast<T*>(gradients.bias)[o] = store<T>(sums[o]);
  });
}

}  // namespace sparsenn
