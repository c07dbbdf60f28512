// What steps on factors say of what they leave, against sums in long double.
#pragma once

#include <cmath>

#include "check.h"
#include "math/measures.h"
#include "tensors.h"

namespace sparsenn::test {

// Room for the numbers of a step's weights, and a row behind them that no kernel may touch. Off, the step measures
// nothing.
struct Measured {
  bool on = false;
  double threshold = 0.4;
  std::vector<double> rows;
  std::vector<char> workspace;

  template <class Device>
  Measures wanted(const std::vector<TensorView>& weights) {
    if (!on) return {nullptr, threshold, nullptr};
    const int64_t count = static_cast<int64_t>(weights.size());
    rows.assign((count + 1) * kMeasures, -7);
    workspace.assign(measures_workspace<Device>(weights.data(), count), -1);  // NaN
    return {rows.data(), threshold, workspace.data()};
  }

  // factors: those of weight n, one after the other.
  template <class W, class T>
  void check(size_t n, Tensor<W>& weight, Tensor<T>* factors, int64_t depth, const std::string& what) const {
    if (!on) return;
    using Long = long double;
    Long kept = 0, squares = 0, decay = 0, misalignment = 0;
    for (int64_t i = 0; i < weight.numel(); ++i) {
      const T w = load(weight.at(i));
      kept += std::fabs(w) > static_cast<T>(threshold);
      squares += Long(w) * w;
      Long sum = 0, product = 1;
      for (int64_t d = 0; d < depth; ++d) {
        const Long square = Long(factors[d].at(i)) * factors[d].at(i);
        sum += square / depth, product *= square;
      }
      decay += sum, misalignment += sum - std::pow(product, Long(1) / depth);
    }
    const Long truth[kMeasures] = {kept, squares, decay, misalignment};
    for (int k = 0; k < kMeasures; ++k) {
      const double found = rows[n * kMeasures + k];
      const Long scale = k == 1 ? squares : decay;
      const Long most = k == 0 ? 0 : 1e-14L * (scale + weight.numel());
      CHECK(found == truth[k] || std::fabs(found - truth[k]) <= most, what, ", measure ", k, " is ", found, ", not ",
            static_cast<double>(truth[k]));
    }
    const bool untouched = std::all_of(rows.end() - kMeasures, rows.end(), [](double x) { return x == -7; });
    CHECK(untouched, what, ": numbers were written behind the last weight's");
  }
};

}  // namespace sparsenn::test
