#include "cpu/parallel.h"

namespace sparsenn {
namespace {

void serial(int64_t size, int64_t, void (*body)(int64_t, int64_t, void*), void* context) { body(0, size, context); }

ParallelFor installed = serial;

}  // namespace

void set_parallel_for(ParallelFor parallel_for) { installed = parallel_for; }

void cpu::parallel_for(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  if (size == 0) return;
  if (size <= grain) {
    body(0, size, context);
  } else {
    installed(size, grain, body, context);
  }
}

}  // namespace sparsenn
