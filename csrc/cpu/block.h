// Blocks of tensors as consecutive elements, whatever the tensors' strides.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "launchers.h"
#include "math/scalar.h"

namespace sparsenn::cpu {

// The order in which elements are visited: that in which one tensor of the operation, its model, lies in memory.
class Order {
 public:
  explicit Order(const TensorView& model) {
    if (model.numel == 0) return;
    for (int64_t i = 0; i < model.dim; ++i) {
      if (model.sizes[i] != 1) axes_[dim_++] = i;
    }
    std::stable_sort(axes_, axes_ + dim_, [&](int64_t a, int64_t b) { return model.strides[a] > model.strides[b]; });
  }

  // Whether visiting in this order walks through `view` in unit steps.
  bool is_flat(const TensorView& view) const {
    int64_t expected = 1;
    for (int64_t i = dim_ - 1; i >= 0; --i) {
      const int64_t size = view.sizes[axes_[i]];
      if (view.strides[axes_[i]] != expected) return false;
      expected *= size;
    }
    return true;
  }

  // Calls visit(offset, stride, count) for the places of `size` elements from the `begin`-th on: offset, offset +
  // stride, ...
  template <class Visit>
  void walk(const TensorView& view, int64_t begin, int64_t size, Visit visit) const {
    int64_t index[kMaxDim];
    int64_t offset = 0;
    for (int64_t i = dim_ - 1, rest = begin; i >= 0; --i) {
      index[i] = rest % view.sizes[axes_[i]];
      rest /= view.sizes[axes_[i]];
      offset += index[i] * view.strides[axes_[i]];
    }
    const int64_t inner = dim_ - 1;
    const int64_t length = dim_ ? view.sizes[axes_[inner]] : 1, stride = dim_ ? view.strides[axes_[inner]] : 0;
    int64_t start = dim_ ? index[inner] : 0;
    while (true) {
      const int64_t count = std::min(size, length - start);
      visit(offset, stride, count);
      if ((size -= count) == 0) return;
      offset -= start * stride;
      start = 0;
      for (int64_t i = inner - 1; i >= 0; --i) {
        offset += view.strides[axes_[i]];
        if (++index[i] < view.sizes[axes_[i]]) break;
        offset -= index[i] * view.strides[axes_[i]];
        index[i] = 0;
      }
    }
  }

  static constexpr int kMaxDim = 63;  // more dimensions of two or more elements hold more than int64_t counts

 private:
  int64_t dim_ = 0;
  int64_t axes_[kMaxDim];
};

// Pointers to the operands' current block, and room for copies of those that are not flat: one for each thread.
template <class T>
struct Scratch {
  explicit Scratch(int64_t operands) : pointers(operands), buffers(operands) {}

  T* buffer(int64_t slot, int64_t size) {
    if (static_cast<int64_t>(buffers[slot].size()) < size) buffers[slot].resize(size);
    return pointers[slot] = buffers[slot].data();
  }

  std::vector<T*> pointers;

 private:
  std::vector<std::vector<T>> buffers;
};

// The operands of one weight (or one product) and how they lie in memory.
class Operands {
 public:
  struct Views {
    const TensorView* views;
    int64_t count;
  };

  Operands(const TensorView& model, std::initializer_list<Views> operands) : order_(model) {
    int64_t bytes = 0;
    flat_ = true;
    for (const auto& [views, count] : operands) {
      for (int64_t i = 0; i < count; ++i) {
        flat_ = flat_ && order_.is_flat(views[i]);
        bytes += views[i].numel * size_of(views[i].dtype);
      }
    }
    streamed_ = flat_ && bytes >= kStreamedBytes;
  }

  // Points the scratch's slots from `slot` on at `size` consecutive elements of each view: their memory, or copies of
  // it.
  template <class T>
  void read(const TensorView* views, int64_t count, int64_t begin, int64_t size, Scratch<T>& scratch,
            int64_t slot) const {
    for (int64_t n = 0; n < count; ++n) {
      T* const data = static_cast<T*>(views[n].data);
      if (flat_) {
        scratch.pointers[slot + n] = data + begin;
      } else {
        T* to = scratch.buffer(slot + n, size);
        order_.walk(views[n], begin, size, [data, to](int64_t offset, int64_t stride, int64_t length) mutable {
          for (const T* from = data + offset; length-- > 0; from += stride) *to++ = *from;
        });
      }
    }
  }

  // The same for what will be written without being read.
  template <class T>
  void place(const TensorView* views, int64_t count, int64_t begin, int64_t size, Scratch<T>& scratch,
             int64_t slot) const {
    for (int64_t n = 0; n < count; ++n) {
      if (flat_) {
        scratch.pointers[slot + n] = static_cast<T*>(views[n].data) + begin;
      } else {
        scratch.buffer(slot + n, size);
      }
    }
  }

  // Puts blocks that were read or placed, and then written, to where the tensors have them.
  template <class T>
  void write(const TensorView* views, int64_t count, int64_t begin, int64_t size, const Scratch<T>& scratch,
             int64_t slot) const {
    if (flat_) return;
    for (int64_t n = 0; n < count; ++n) {
      T* const data = static_cast<T*>(views[n].data);
      order_.walk(views[n], begin, size,
                  [data, from = scratch.pointers[slot + n]](int64_t offset, int64_t stride, int64_t length) mutable {
                    for (T* to = data + offset; length-- > 0; to += stride) *to = *from++;
                  });
    }
  }

  // `size` consecutive elements of a tensor that broadcasts to the model, as accumulators: its memory where that holds
  // them, else a copy.
  template <class T>
  const T* read_broadcast(const TensorView& view, int64_t begin, int64_t size, std::vector<T>& buffer) const {
    if (size_of(view.dtype) == sizeof(T) && order_.is_flat(view)) return static_cast<const T*>(view.data) + begin;
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
    dispatch_dtype(view.dtype, [&](auto element) {
      using Element = decltype(element);
      if constexpr (std::is_same_v<accumulator_t<Element>, T>) {
        const auto* const data = static_cast<const Element*>(view.data);
        order_.walk(view, begin, size,
                    [data, to = buffer.data()](int64_t offset, int64_t stride, int64_t length) mutable {
                      if (stride == 0) {
                        to = std::fill_n(to, length, load(data[offset]));
                      } else {
                        for (const Element* from = data + offset; length-- > 0; from += stride) *to++ = load(*from);
                      }
                    });
      }
    });
    return buffer.data();
  }

  // Whether the operation is too large for the last-level cache: what is only written had better not be fetched first.
  bool streamed() const { return streamed_; }

 private:
  static constexpr int64_t kStreamedBytes = int64_t{32} << 20;

  Order order_;
  bool flat_, streamed_;
};

}  // namespace sparsenn::cpu
