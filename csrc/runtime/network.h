// A network of products and what lies between them, on float32 arrays.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/product.h"

namespace sparsenn::runtime {

class Step {
 public:
  virtual ~Step() = default;
  // `run` is 1 for one sample (`external` if its input is the caller's), else the number of lanes.
  virtual void run(const float* const* in, bool external, int64_t lanes, float* out, float* scratch) const = 0;
  virtual int64_t scratch(int64_t) const { return 0; }
};

class Network {
 public:
  // Value 0 is the input; each step adds one. A step throws std::invalid_argument where it does not fit.
  explicit Network(Shape in) : shapes_{in} {}

  int64_t add_product(int64_t of, Weights weights, const Window& window, bool relu, Method one, Method panel);
  int64_t add_sum(int64_t a, int64_t b, bool relu);
  int64_t add_relu(int64_t of);
  int64_t add_curve(int64_t of, Curve curve);
  int64_t add_affine(int64_t of, std::vector<float> scale, std::vector<float> shift, bool relu);
  int64_t add_pool(int64_t of, bool average, Spans rows, Spans columns);
  int64_t add_softmax(int64_t of);
  int64_t add_flatten(int64_t of);

  // The result is the last value. Costs are the seconds of one sample alone and of a panel of 16, 32 and 64.
  void finish(const double (&costs)[4]);

  Shape shape(int64_t value) const { return shapes_.at(value); }
  int64_t features_in() const { return shapes_.front().size(); }
  int64_t features_out() const { return shapes_.back().size(); }
  // x: count rows of features_in() floats. Any thread may call.
  void run(const float* x, int64_t count, float* out, int threads) const;

 private:
  struct Node {
    std::unique_ptr<Step> step;
    std::vector<int64_t> of;
    int64_t slot = -1;  // -1: the memory of the value it is a view of
  };
  // Memory for one thread.
  struct Desk {
    std::vector<Floats> slots;
    Floats scratch, panel;
    int64_t lanes = 0;
  };

  int64_t add(std::unique_ptr<Step> step, std::vector<int64_t> of, Shape out);
  void assign_slots();
  void run_part(const float* x, int64_t count, float* out) const;
  void run_one(const float* x, float* out, Desk& desk) const;
  void run_panel(const float* x, int64_t count, int64_t lanes, float* out, Desk& desk) const;
  std::unique_ptr<Desk> take(int64_t lanes) const;
  void give_back(std::unique_ptr<Desk> desk) const;
  int64_t lanes_for(int64_t count) const;

  std::vector<Shape> shapes_;
  std::vector<Node> nodes_;  // of value i + 1
  std::vector<int64_t> slot_sizes_, slot_of_;
  std::vector<int32_t> index_;  // the inputs that a first linear layer reads, if nothing else reads the input
  double costs_[4] = {1, 4, 6, 8};
  bool multiplies_ = false;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Desk>> desks_[4];
};

}  // namespace sparsenn::runtime
