// The seam between the bindings and the loops: every launcher's signature, once, for the CPU and for CUDA. No torch
// here.
//
// A launcher gets arguments that were checked: one shape, fitting dtypes, outputs that overlap neither themselves nor
// one another, nor, but for the gradients that a step reads, parts of another argument. Strides are in elements and may
// be anything for what is read; depth is the number of factors of a weight.
#pragma once

#include <cstdint>

namespace sparsenn {

enum class DType : int8_t { float64, float32, bfloat16, float16 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

struct TensorView {
  void* data;
  DType dtype;
  int64_t numel;
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
};

// A number that is known on the host, or lies on the device as float32 or float64 (then device is not null).
struct Scalar {
  double value;
  const void* device;
  bool is_double;
};

struct FactorizedSgdOptions {
  Scalar lr, lam;
  double momentum, dampening, weight_decay;
  bool nesterov, maximize;
};

struct FactorizedAdamOptions {
  Scalar lr, lam;
  double beta1, beta2, eps, weight_decay;
  bool decoupled, maximize;
};

struct ProxSgdOptions {
  Scalar lr;
  double momentum, dampening, weight_decay;
  bool nesterov, maximize;
};

// A threshold, or the strength of a penalty: one number, or, where the tensor's data are not null, a tensor with the
// strides that make it broadcast. Its dtype is that of what it acts on, or float32 for half types.
struct Threshold {
  Scalar scalar;
  TensorView tensor;
};

// int64 numbers to be written; none where data is null.
struct Counts {
  int64_t* data;
  int64_t stride;
};

// Where a step on factors puts what it leaves of each weight, numbers of math/measures.h, one weight after the other;
// nowhere where data is null. `workspace` has room for measures_workspace(...) bytes then.
struct Measures {
  double* data;
  double threshold;
  void* workspace;
};

// A device is a tag: each launcher is declared here once and specialised in cpu/ and in cuda/. The stream is a
// cudaStream_t of the device that is current; on the CPU it is null.
struct Cpu;
struct Cuda;

template <class Device>
int64_t measures_workspace(const TensorView* weights, int64_t count);

// out = prod_d factors[d]
template <class Device>
void hadamard(const TensorView* factors, int64_t depth, const TensorView& out, void* stream);

// grads[d] = grad * prod_{k != d} factors[k]
template <class Device>
void hadamard_backward(const TensorView& grad, const TensorView* factors, int64_t depth, const TensorView* grads,
                       void* stream);

// One step for `count` weights, in place. factors and momenta hold count * depth views, those of one weight together,
// of the weights' dtype or float32 for half types; momenta is null where momentum is 0.
template <class Device>
void factorized_sgd(const TensorView* weights, const TensorView* factors, const TensorView* momenta,
                    const TensorView* grads, int64_t count, int64_t depth, const FactorizedSgdOptions& options,
                    const Measures& measures, void* stream);

// The same for weights whose factors all have one magnitude: roots holds one signed root for each, of depth `depth`,
// and momenta one momentum.
template <class Device>
void balanced_sgd(const TensorView* weights, const TensorView* roots, const TensorView* momenta,
                  const TensorView* grads, int64_t count, int64_t depth, const FactorizedSgdOptions& options,
                  const Measures& measures, void* stream);

// The tensors of a step of Adam on the factors of `count` weights. Where there are `depth` views for a weight, those of
// one weight are together, of the weights' dtype or float32 for half types; largest is null without AMSGrad. steps are
// single float32 numbers on the device: how many there were.
struct AdamTensors {
  const TensorView *weights, *factors, *means, *squares, *largest, *steps, *grads;
  int64_t count, depth;
};

// `workspace` has room for factorized_adam_workspace(count) bytes.
template <class Device>
int64_t factorized_adam_workspace(int64_t count);
template <class Device>
void factorized_adam(const AdamTensors& tensors, const FactorizedAdamOptions& options, const Measures& measures,
                     void* workspace, void* stream);

// One proximal step for `count` weights, in place. momenta are of the weights' dtype or float32 for half types, and
// null where momentum is 0. lams holds one for each weight; zeros gets the number of exact zeros in each.
template <class Device>
void prox_sgd(const TensorView* weights, const TensorView* momenta, const TensorView* grads, const Threshold* lams,
              const Counts& zeros, int64_t count, const ProxSgdOptions& options, void* stream);

// out = sign(input) max(|input| - threshold, 0)
template <class Device>
void soft_threshold(const TensorView& input, const Threshold& threshold, const TensorView& out, void* stream);

// out = grad where |input| > threshold, else 0
template <class Device>
void soft_threshold_backward(const TensorView& grad, const TensorView& input, const Threshold& threshold,
                             const TensorView& out, void* stream);

// A spectral weight's eigenvectors, row-major (out, in, kernel), and eigenvalues; an absent vector is null. `kernel` is
// 1 for a linear layer.
struct Spectrum {
  DType dtype;
  int64_t out, in, kernel;
  const void *phi, *lambda_in, *lambda_out;
};

// Where gradients go, contiguous; null where one is not wanted. `input` and `bias` are those of spectral_linear.
struct SpectralGradients {
  void *phi, *lambda_in, *lambda_out, *input, *bias;
};

// weight = (lambda_in - lambda_out) phi
template <class Device>
void spectral_weight(const Spectrum& spectrum, void* weight, void* stream);

// The gradients of phi, lambda_in and lambda_out in one pass over that of the weight, in whose place that of phi may
// lie. `workspace` has room for spectral_weight_workspace(spectrum) bytes.
template <class Device>
int64_t spectral_weight_workspace(const Spectrum& spectrum);
template <class Device>
void spectral_weight_backward(const void* grad, const Spectrum& spectrum, const SpectralGradients& gradients,
                              void* workspace, void* stream);

// CPU: output = input weight^T + bias for a row-major (batch, in) input, without the weight in memory; bias may be
// null.
void spectral_linear(const void* input, const Spectrum& spectrum, const void* bias, int64_t batch, void* output);
void spectral_linear_backward(const void* grad, const void* input, const Spectrum& spectrum, int64_t batch,
                              const SpectralGradients& gradients);

// CUDA: output = input * sign * scale + shift for rows of `columns` numbers, where scale and shift, one of which may be
// null, belong to the columns and are of the output's dtype; what is around the vendor's products. The input may be
// float32 where the output is a half type.
void scale_columns(DType input_dtype, const void* input, const void* scale, double sign, const void* shift,
                   int64_t rows, int64_t columns, DType dtype, void* output, void* stream);

// A row-major matrix, what the norm of a ridge net takes of it (math/ridge_norm.h), and where its gradient goes.
enum class NormKind : int8_t;
struct NormTerm {
  NormKind kind;
  int64_t rows, columns;
  const void* data;
  void* grad;
};

// total, of the accumulator's type, = the sum of the terms. `workspace` has room for ridge_norm_workspace(...) bytes.
template <class Device>
int64_t ridge_norm_workspace(const NormTerm* terms, int64_t count);
template <class Device>
void ridge_norm(DType dtype, const NormTerm* terms, int64_t count, void* total, void* workspace, void* stream);

// The gradient of each term times *scale, of the accumulator's type.
template <class Device>
void ridge_norm_backward(DType dtype, const NormTerm* terms, int64_t count, const void* scale, void* stream);

// A layer of small networks: a convolution over patches that do not overlap, of a row-major (in_channels, length)
// input; weights are (filters, out_channels, in_channels, kernel), biases (filters, out_channels).
struct PatchLayer {
  int64_t in_channels, length, out_channels, kernel, filters;
  bool bias;
};

// What a run of a stack has for itself. The enumerations are those of math/activation.h and math/stacked_steps.h.
enum class Activation : int32_t;
enum class Optimizer : int32_t;
enum class WeightPenalty : int32_t;
struct StackedRun {
  int64_t index, seed, data, depth;
  Activation activation, last;
  Optimizer optimizer;
  WeightPenalty penalty;
  double lr, lam, momentum, beta1, beta2, eps, clipping, weight_decay;
};

// The tensors of stacked_steps_, contiguous, and which steps to take.
struct Stack {
  DType dtype;  // float32 or float64
  void *weights, *state;
  int64_t parameters, rows;  // of a run: state is (runs, rows, parameters)
  double* losses;
  const void *x, *y;
  bool labels;  // y is int64
  int64_t sets, samples;
  const PatchLayer* layers;
  int64_t depth;
  int64_t batch, epoch, first, steps;
};

// Steps of `count` runs. `workspace` has room for stacked_workspace(stack, count) bytes.
template <class Device>
int64_t stacked_workspace(const Stack& stack, int64_t count);
template <class Device>
void stacked_steps(const Stack& stack, const StackedRun* runs, int64_t count, void* workspace, void* stream);

// Splits [0, size) among threads; parts are multiples of `grain` but for the last. Serial until a binding installs its
// own.
using ParallelFor = void (*)(int64_t size, int64_t grain, void (*body)(int64_t begin, int64_t end, void* context),
                             void* context);
void set_parallel_for(ParallelFor parallel_for);

}  // namespace sparsenn
