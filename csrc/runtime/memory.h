// Aligned memory of floats that may be read a little beyond its end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "runtime/panel.h"

namespace sparsenn::runtime {

class Floats {
 public:
  Floats() = default;
  // Zeros.
  explicit Floats(int64_t size) : data_(static_cast<float*>(::operator new(bytes(size), std::align_val_t{64}))) {
    std::fill_n(data_.get(), size + kSlack, 0.0f);
  }

  float* get() const { return data_.get(); }

 private:
  static size_t bytes(int64_t size) { return static_cast<size_t>(size + kSlack) * sizeof(float); }
  struct Free {
    void operator()(float* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
};

}  // namespace sparsenn::runtime
