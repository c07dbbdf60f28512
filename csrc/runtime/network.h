// A network of products and what lies between them, on float32 arrays.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/layers.h"
#include "runtime/product.h"

namespace sparsenn::runtime {

// Samples that are computed together: `count` one after the other (lanes 1), or one panel (count 1).
struct Batch {
  int64_t count, lanes;
  int64_t size() const { return count * lanes; }
};

class Step {
 public:
  virtual ~Step() = default;
  // `external` if the input is the caller's memory, which is never that of a panel.
  virtual void run(const float* const* in, bool external, const Batch& batch, float* out, float* scratch) const = 0;
  virtual int64_t scratch(const Batch&) const { return 0; }
};

// Seconds: of 1, 8 and 64 samples one after the other, and of a panel of 8, 16, 32 and 64 that may be partly empty.
struct Prices {
  double samples[3], panel[4];
};

class Network {
 public:
  // Value 0 is the input; each step adds one. A step throws std::invalid_argument where it does not fit.
  explicit Network(Shape in) : shapes_{in} {}

  int64_t add_product(int64_t of, Weights weights, const Window& window, bool relu, Methods methods);
  int64_t add_sum(int64_t a, int64_t b, bool relu);
  int64_t add_relu(int64_t of);
  int64_t add_curve(int64_t of, Curve curve);
  int64_t add_affine(int64_t of, std::vector<float> scale, std::vector<float> shift, bool relu);
  int64_t add_pool(int64_t of, bool average, Spans rows, Spans columns);
  int64_t add_softmax(int64_t of);
  int64_t add_flatten(int64_t of);

  // The result is the last value.
  void finish(const Prices& prices);

  Shape shape(int64_t value) const { return shapes_.at(value); }
  int64_t features_in() const { return shapes_.front().size(); }
  int64_t features_out() const { return shapes_.back().size(); }
  // x: count rows of features_in() floats. Any thread may call.
  void run(const float* x, int64_t count, float* out, int threads) const;

 private:
  struct Node {
    std::unique_ptr<Step> step;
    std::vector<int64_t> of;
  };
  // Memory for one thread.
  struct Workspace {
    std::vector<Floats> slots;
    Floats scratch, panel;
    Batch most;
  };

  int64_t add(std::unique_ptr<Step> step, std::vector<int64_t> of, Shape out);
  void assign_slots();
  void place_input();
  void run_part(const float* x, int64_t count, float* out) const;
  // Both say whether x is finite.
  bool run_samples(const float* x, int64_t count, float* out, Workspace& workspace) const;
  bool run_panel(const float* x, int64_t count, float* out, Workspace& workspace) const;
  std::unique_ptr<Workspace> take(int64_t lanes) const;
  void give_back(std::unique_ptr<Workspace> workspace) const;
  double price(int64_t lanes, int64_t count) const;
  int64_t lanes_for(int64_t count) const;

  std::vector<Shape> shapes_;
  std::vector<Node> nodes_;  // of value i + 1
  std::vector<int64_t> slot_sizes_, slot_of_;
  std::vector<int32_t> index_;   // the inputs that a first linear layer reads, if nothing else reads the input
  std::vector<int32_t> places_;  // of the input's features in a panel
  std::vector<uint8_t> wanted_;  // whether any of eight of them is read
  Prices prices_{};
  int64_t together_ = 1;  // samples one after the other, for each step before the next begins
  bool multiplies_ = false;
  bool dense_panels_ = false;  // for which 8 lanes are too few
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> workspaces_[5];
};

}  // namespace sparsenn::runtime
