#include "runtime/network.h"

#include <bit>
#include <exception>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "runtime/panel.h"
#include "runtime/steps.h"

namespace sparsenn::runtime {
namespace {

constexpr int64_t kLanes[] = {1, 8, 16, 32, 64};
constexpr int64_t kCached = 1 << 16;  // floats of images that are kept between two steps: a part of the second cache

int kind_of(int64_t lanes) { return lanes == 1 ? 0 : std::countr_zero(static_cast<uint64_t>(lanes)) - 2; }

void require(bool holds, const char* problem) {
  if (!holds) throw std::invalid_argument(problem);
}

}  // namespace

int64_t Network::add(std::unique_ptr<Step> step, std::vector<int64_t> of, Shape out) {
  nodes_.push_back({std::move(step), std::move(of)});
  shapes_.push_back(out);
  return static_cast<int64_t>(nodes_.size());
}

int64_t Network::add_product(int64_t of, Weights weights, const Window& window, bool relu, Methods methods) {
  const Shape in = shape(of);
  // A first linear layer reads a panel that holds only what it uses.
  if (nodes_.empty() && in.size() == in.channels && window.kernel[0] * window.kernel[1] == 1 && !window.padding[0] &&
      !window.padding[1]) {
    std::vector<char> seen(in.channels, 0);
    for (int32_t column : weights.columns) {
      require(column >= 0 && column < in.channels, "a weight lies outside of its matrix");
      seen[column] = 1;
    }
    for (int64_t i = 0; i < in.channels; ++i) {
      if (seen[i]) index_.push_back(i);
    }
    if (index_.empty() && in.channels) index_.push_back(0);
    if (static_cast<int64_t>(index_.size()) == in.channels) index_.clear();
  } else if (of == 0) {
    require(index_.empty(), "two steps read the input, and the first is linear");
  }
  Product product(std::move(weights), in, window, relu, methods, of == 0 ? index_ : std::vector<int32_t>());
  const Shape out = product.out();
  multiplies_ = true;
  dense_panels_ |= methods.panel == Method::dense;
  return add(std::make_unique<ProductStep>(std::move(product)), {of}, out);
}

int64_t Network::add_sum(int64_t a, int64_t b, bool relu) {
  require(shape(a) == shape(b), "the two terms of a sum have different shapes");
  return add(std::make_unique<SumStep>(shape(a).size(), relu), {a, b}, shape(a));
}

int64_t Network::add_relu(int64_t of) { return add(std::make_unique<ReluStep>(shape(of).size()), {of}, shape(of)); }

int64_t Network::add_curve(int64_t of, Curve curve) {
  return add(std::make_unique<CurveStep>(shape(of).size(), curve), {of}, shape(of));
}

int64_t Network::add_affine(int64_t of, std::vector<float> scale, std::vector<float> shift, bool relu) {
  const Shape in = shape(of);
  require(static_cast<int64_t>(scale.size()) == in.channels && scale.size() == shift.size(),
          "an affine step does not fit");
  return add(std::make_unique<AffineStep>(in.height * in.width, std::move(scale), std::move(shift), relu), {of}, in);
}

int64_t Network::add_pool(int64_t of, bool average, Spans rows, Spans columns) {
  const Shape in = shape(of);
  const auto check = [](const Spans& spans, int64_t size) {
    require(!spans.begin.empty() && spans.begin.size() == spans.end.size() && spans.begin.size() == spans.factor.size(),
            "a pooling has no windows");
    for (size_t i = 0; i < spans.begin.size(); ++i)
      require(spans.begin[i] >= 0 && spans.begin[i] <= spans.end[i] && spans.end[i] <= size,
              "a pooling leaves its input");
  };
  check(rows, in.height);
  check(columns, in.width);
  const Shape out{in.channels, static_cast<int64_t>(rows.begin.size()), static_cast<int64_t>(columns.begin.size())};
  return add(std::make_unique<PoolStep>(in, average, std::move(rows), std::move(columns)), {of}, out);
}

int64_t Network::add_softmax(int64_t of) { return add(std::make_unique<SoftmaxStep>(shape(of)), {of}, shape(of)); }

int64_t Network::add_flatten(int64_t of) { return add(nullptr, {of}, {shape(of).size(), 1, 1}); }

void Network::finish(const Prices& prices) {
  require(!nodes_.empty(), "a network has no steps");
  prices_ = prices;
  if (dense_panels_) prices_.panel[0] = std::numeric_limits<double>::infinity();
  together_ = kPanel;
  for (const Shape& shape : shapes_) {
    if (shape.size() > shape.channels) together_ = std::clamp<int64_t>(kCached / shape.size(), 1, together_);
  }
  for (size_t i = 1; i < nodes_.size(); ++i) {
    for (int64_t of : nodes_[i].of)
      require(of != 0 || index_.empty(), "the input is read twice, once by a linear layer");
  }
  assign_slots();
  place_input();
}

void Network::place_input() {
  const int64_t features = features_in();
  places_.assign(features, static_cast<int32_t>(index_.size()));  // what is not read goes to a row that is not read
  if (index_.empty()) std::iota(places_.begin(), places_.end(), 0);
  for (size_t i = 0; i < index_.size(); ++i) places_[index_[i]] = static_cast<int32_t>(i);
  wanted_.assign((features + 7) / 8, index_.empty());
  for (int32_t feature : index_) {
    wanted_[feature / 8] = true;
    if (feature >= features - 8) wanted_.back() = true;
  }
}

// Values share memory where one is read for the last time before the other is written; a view lies where its value
// lies.
void Network::assign_slots() {
  const int64_t count = static_cast<int64_t>(shapes_.size());
  std::vector<int64_t> root(count), last(count, 0);
  for (int64_t value = 0; value < count; ++value) {
    const bool view = value && !nodes_[value - 1].step;
    root[value] = view ? root[nodes_[value - 1].of[0]] : value;
    for (size_t i = 0; value && i < nodes_[value - 1].of.size(); ++i) last[root[nodes_[value - 1].of[i]]] = value;
  }
  last[root[count - 1]] = count;
  std::vector<int64_t> free;
  slot_of_.assign(count, -1);  // the input has none
  for (int64_t value = 1; value < count; ++value) {
    if (root[value] != value) {
      slot_of_[value] = slot_of_[root[value]];
      continue;
    }
    if (free.empty()) {
      free.push_back(static_cast<int64_t>(slot_sizes_.size()));
      slot_sizes_.push_back(0);
    }
    slot_of_[value] = free.back();
    free.pop_back();
    slot_sizes_[slot_of_[value]] = std::max(slot_sizes_[slot_of_[value]], shapes_[value].size());
    for (int64_t other = 1; other <= value; ++other) {
      if (root[other] == other && last[other] == value && slot_of_[other] >= 0) free.push_back(slot_of_[other]);
    }
  }
}

std::unique_ptr<Network::Workspace> Network::take(int64_t lanes) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& free = workspaces_[kind_of(lanes)];
    if (!free.empty()) {
      auto workspace = std::move(free.back());
      free.pop_back();
      return workspace;
    }
  }
  auto workspace = std::make_unique<Workspace>();
  workspace->most = {lanes == 1 ? together_ : 1, lanes};
  for (int64_t size : slot_sizes_) workspace->slots.emplace_back(size * workspace->most.size());
  int64_t scratch = 0;
  for (const Node& node : nodes_) scratch = std::max(scratch, node.step ? node.step->scratch(workspace->most) : 0);
  workspace->scratch = Floats(scratch);
  if (lanes > 1) workspace->panel = Floats((index_.empty() ? features_in() : index_.size() + 1) * lanes);
  return workspace;
}

void Network::give_back(std::unique_ptr<Workspace> workspace) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& free = workspaces_[kind_of(workspace->most.lanes)];
  if (free.size() < 16) free.push_back(std::move(workspace));
}

// Of so many samples: one after the other, between the measured numbers on straight lines; or in a panel.
double Network::price(int64_t lanes, int64_t count) const {
  if (lanes > 1) return prices_.panel[kind_of(lanes) - 1];
  const auto& [one, few, many] = prices_.samples;
  const double n = static_cast<double>(count);
  return count <= 8 ? one + (few - one) * (n - 1) / 7 : few + (many - few) * (n - 8) / 56;
}

// How to compute the next of so many samples: the cheapest a sample.
int64_t Network::lanes_for(int64_t count) const {
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t lanes : kLanes) {
    const int64_t now = std::min(count, lanes == 1 ? together_ : lanes);
    const double cost = price(lanes, now) / static_cast<double>(now);
    if (cost < least) {
      least = cost;
      best = lanes;
    }
  }
  return best;
}

void Network::run(const float* x, int64_t count, float* out, int threads) const {
  const int64_t parts = std::min<int64_t>(threads, (count + kPanel - 1) / kPanel);
  if (parts <= 1) return run_part(x, count, out);
  const int64_t share = ((count + kPanel - 1) / kPanel + parts - 1) / parts * kPanel;
  std::exception_ptr problem;
  std::mutex mutex;
  const auto part = [&](int64_t begin) {
    try {
      run_part(x + begin * features_in(), std::min(share, count - begin), out + begin * features_out());
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      problem = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> workers;  // is joined in any case
    workers.reserve(parts);
    for (int64_t begin = share; begin < count; begin += share) {
      try {
        workers.emplace_back(part, begin);
      } catch (const std::exception&) {  // the system has no thread to give, or no memory for one
        part(begin);
      }
    }
    part(0);
  }
  if (problem) std::rethrow_exception(problem);
}

void Network::run_part(const float* x, int64_t count, float* out) const {
  for (int64_t done = 0; done < count;) {
    const int64_t lanes = lanes_for(count - done);
    auto workspace = take(lanes);
    const int64_t most = workspace->most.size();
    // As long as this is the cheapest way: as many as go together, or all that are left in the end.
    do {
      const int64_t now = std::min(most, count - done);
      const float* from = x + done * features_in();
      float* to = out + done * features_out();
      const bool finite = lanes == 1 ? run_samples(from, now, to, *workspace) : run_panel(from, now, to, *workspace);
      // What is not finite reaches every output, as it does through the zeros of a dense product.
      for (int64_t s = 0; s < now && multiplies_ && !finite; ++s) {
        if (!all_finite(from + s * features_in(), features_in()))
          std::fill_n(to + s * features_out(), features_out(), std::numeric_limits<float>::quiet_NaN());
      }
      done += now;
    } while (done < count && (count - done >= most || lanes_for(count - done) == lanes));
    give_back(std::move(workspace));
  }
}

bool Network::run_samples(const float* x, int64_t count, float* out, Workspace& workspace) const {
  const bool finite = !multiplies_ || all_finite(x, count * features_in());  // and x is in the cache from here on
  const auto place = [&](int64_t value) -> const float* {
    return slot_of_[value] < 0 ? x : workspace.slots[slot_of_[value]].get();
  };
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (!node.step) continue;
    const float* in[2] = {place(node.of[0]), place(node.of.back())};
    const bool last = i + 1 == nodes_.size();
    node.step->run(in, slot_of_[node.of[0]] < 0, {count, 1}, last ? out : workspace.slots[slot_of_[i + 1]].get(),
                   workspace.scratch.get());
  }
  if (!nodes_.back().step) std::copy_n(place(static_cast<int64_t>(nodes_.size())), count * features_out(), out);
  return finite;
}

bool Network::run_panel(const float* x, int64_t count, float* out, Workspace& workspace) const {
  const int64_t lanes = workspace.most.lanes;
  const bool finite = to_panel(x, count, {features_in(), places_.data(), wanted_.data()}, lanes, workspace.panel.get());
  const auto place = [&](int64_t value) -> const float* {
    return slot_of_[value] < 0 ? workspace.panel.get() : workspace.slots[slot_of_[value]].get();
  };
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (!node.step) continue;
    const float* in[2] = {place(node.of[0]), place(node.of.back())};
    node.step->run(in, false, {1, lanes}, workspace.slots[slot_of_[i + 1]].get(), workspace.scratch.get());
  }
  from_panel(place(static_cast<int64_t>(nodes_.size())), count, features_out(), lanes, out);
  return finite;
}

}  // namespace sparsenn::runtime
