// What measures need of memory; the sums themselves are formed in the kernels of the steps (measures.h).
#include "cuda/launch.cuh"
#include "cuda/measures.h"

namespace sparsenn {

template <>
int64_t measures_workspace<Cuda>(const TensorView* weights, int64_t count) {
  int64_t chunks = 0;
  for (int64_t n = 0; n < count; ++n) chunks += cuda::Parts::chunks_of(weights[n]);
  return chunks * kMeasures * static_cast<int64_t>(sizeof(double));
}

}  // namespace sparsenn
