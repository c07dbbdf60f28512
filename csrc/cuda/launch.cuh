// What makes a launch safe, once: the grid is sized for the device that is current, the stream is the caller's, indices
// of tensors have 64 bits, and a launch that fails is an error with CUDA's own words. Nothing launches for empty
// tensors (run.h).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/grid.h"
#include "cuda/phases.h"
#include "cuda/team.h"

namespace sparsenn::cuda {

template <int kBytes>
struct Words;
template <>
struct Words<16> {
  using type = uint4;
};
template <>
struct Words<8> {
  using type = uint2;
};

template <class Pack>
SPARSENN_INLINE Pack read_words(const void* from) {
  return bit_cast<Pack>(*static_cast<const typename Words<sizeof(Pack)>::type*>(from));
}

// An intrinsic, because the compiler takes a plain store of words apart into its elements.
template <class Pack>
SPARSENN_INLINE void write_words(void* to, const Pack& pack) {
#if defined(__CUDA_ARCH__)
  using Type = typename Words<sizeof(Pack)>::type;
  __stwb(static_cast<Type*>(to), bit_cast<Type>(pack));
#endif
}

// One atomic addition of integers a block: the sum does not depend on the order.
SPARSENN_INLINE void add_counts(int64_t* to, uint32_t counted, int thread) {
#if defined(__CUDA_ARCH__)
  __shared__ uint32_t of_warps[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) counted += __shfl_down_sync(~0u, counted, distance);
  if (thread % 32 == 0) of_warps[thread / 32] = counted;
  __syncthreads();
  if (thread == 0) {
    uint64_t total = 0;
    for (const uint32_t one : of_warps) total += one;
    if (total) atomicAdd(reinterpret_cast<unsigned long long*>(to), total);
  }
  __syncthreads();
#endif
}

SPARSENN_INLINE void write_sums(double* to, const double (&sums)[kMeasures], int thread) {
#if defined(__CUDA_ARCH__)
  __shared__ double of_warps[kMeasures][kThreads / 32];
  SPARSENN_UNROLL
  for (int k = 0; k < kMeasures; ++k) {
    double sum = sums[k];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(~0u, sum, distance);
    if (thread % 32 == 0) of_warps[k][thread / 32] = sum;
  }
  __syncthreads();
  if (thread < kMeasures) {
    double total = 0;
    for (const double one : of_warps[thread]) total += one;
    to[thread] = total;
  }
  __syncthreads();
#endif
}

// Blocks walk over chunks in a loop: enough of them to fill the device several times over, so that the last ones to
// finish don't leave it idle.
constexpr int64_t kBlocksPerMultiprocessor = 32;

// After an error the pending one is cleared: it is reported here, and must not be blamed on the next caller.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  std::string message =
      std::string("sparsenn: ") + what + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    message +=
        ". The library was not built for this card; rebuild it here, or with TORCH_CUDA_ARCH_LIST set to its "
        "capability";
  }
  throw std::runtime_error(message);
}

inline int64_t multiprocessors() {
  static std::array<std::atomic<int>, 64> known{};
  int device = 0;
  check(cudaGetDevice(&device), "the current CUDA device is not known");
  const bool cached = device < static_cast<int>(known.size());
  int count = cached ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
          "the CUDA device can't be asked for its size");
    if (cached) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

inline bool has_large_parameters() {
  static const bool has = [] {
    int version = 0;
    check(cudaDriverGetVersion(&version), "the CUDA driver does not tell its version");
    return version >= 12010;
  }();
  return has;
}

// Left alone, the compiler rounds registers down to a better occupancy. For the common kernels it need not spill for
// that; the others, and operations that say so, are told that one block on a multiprocessor is enough.
template <class Op>
constexpr bool would_spill() {
  if constexpr (requires { Op::kWouldSpill; }) {
    return Op::kWouldSpill;
  } else {
    return false;
  }
}
template <class Walk, class Op>
constexpr int kMinBlocks = std::is_same_v<Walk, Flat> && Op::kOperands > 0 && !would_spill<Op>() ? 0 : 1;

template <class Walk, class Table, class Op>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<Walk, Op>))
    kernel(const __grid_constant__ Table table, const __grid_constant__ Op op) {
  Walk::run(table, op, blockIdx.x, gridDim.x, threadIdx.x);
}

template <class Walk, int kWords, class Op>
const void* kernel_of() {
  using Parameter = Table<kWords>;
  static_assert(sizeof(Parameter) + sizeof(Op) <= (kWords > 4096 / 8 ? 32764 : 4096),
                "a kernel's parameters have a limit");
  return reinterpret_cast<const void*>(&kernel<Walk, Parameter, Op>);
}

// Sets `count` numbers to 0, `stride` apart.
inline void clear(int64_t* data, int64_t stride, int64_t count, void* stream) {
  check(cudaMemset2DAsync(data, stride * sizeof(int64_t), 0, sizeof(int64_t), count, static_cast<cudaStream_t>(stream)),
        "memory on the CUDA device can't be set to 0");
}

inline void launch(const void* kernel, const void* table, const void* op, int64_t chunks, void* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(std::min(chunks, multiprocessors() * kBlocksPerMultiprocessor));
  config.blockDim = kThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  void* parameters[] = {const_cast<void*>(table), const_cast<void*>(op)};
  check(cudaLaunchKernelExC(&config, kernel, parameters), "a CUDA kernel could not be launched");
}

// Where phases follow each other; see phases.h.
template <class Op>
__global__ void __launch_bounds__(kThreads) phases(const __grid_constant__ Op op) {
  __shared__ typename Op::Shared shared;
  for (int64_t block = blockIdx.x; block < op.blocks; block += gridDim.x) {
    for_each_phase<Op::kPhases>([&](auto phase) {
      op.template phase<phase>(block, threadIdx.x, shared);
      __syncthreads();
    });
  }
}

template <class Op>
void launch_phases(const Op& op, void* stream) {
  if (op.blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(std::min(op.blocks, multiprocessors() * kBlocksPerMultiprocessor));
  config.blockDim = kThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  void* parameters[] = {const_cast<Op*>(&op)};
  check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(&phases<Op>), parameters),
        "a CUDA kernel could not be launched");
}

// See team.h.
struct Team {
  uint32_t thread;

  template <class Body>
  __device__ __forceinline__ void each(uint32_t count, const Body& body) const {
    SPARSENN_ROLLED
    for (uint32_t i = thread; i < count; i += kThreads) body(i);
    __syncthreads();
  }
};

// One block a multiprocessor is enough, said so: left alone, ptxas would rather spill.
template <class Op>
__global__ void __launch_bounds__(kThreads, 1) team(const __grid_constant__ Op op) {
  extern __shared__ float4 shared[];
  op.run(blockIdx.x, Team{threadIdx.x}, shared);
}

inline int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "the current CUDA device is not known");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "the CUDA device can't be asked for its shared memory");
  return bytes;
}

inline void upload(void* to, const void* from, int64_t bytes, void* stream) {
  cudaStreamCaptureStatus captured;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &captured), "the CUDA stream is not known");
  if (captured != cudaStreamCaptureStatusNone) {
    throw std::runtime_error("sparsenn: a call that brings tables to the CUDA device can't be part of a CUDA graph");
  }
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
        "memory can't be copied to the CUDA device");
}

template <class Op>
void launch_team(const Op& op, void* stream) {
  if (op.blocks == 0) return;
  const void* const kernel = reinterpret_cast<const void*>(&team<Op>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(op.shared_bytes)),
        "a CUDA kernel can't have the shared memory it needs");
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(op.blocks);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = static_cast<size_t>(op.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  void* parameters[] = {const_cast<Op*>(&op)};
  check(cudaLaunchKernelExC(&config, kernel, parameters), "a CUDA kernel could not be launched");
}

}  // namespace sparsenn::cuda

#include "cuda/run.h"
