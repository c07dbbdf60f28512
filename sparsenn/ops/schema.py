"""The contract: every operator's schema on one page.

The dispatcher picks the implementation: ``reference`` is registered for every device, the compiled libraries override it on
CPU and CUDA. ``Tensor(a!)`` marks what an operator writes. Schemas with ``Tensor[]`` and a derivative carry no default
arguments (torch 2.11 to 2.13 lose it); defaults live in the public functions.
"""

from __future__ import annotations

import hashlib

NAMESPACE = "sparsenn"

SCHEMAS = {
    # w = prod_d factors[d], elementwise
    "hadamard": "(Tensor[] factors) -> Tensor",
    "hadamard_out": "(Tensor[] factors, Tensor(a!) out) -> ()",
    # grads[d] = grad * prod_{k != d} factors[k]
    "hadamard_backward": "(Tensor grad, Tensor[] factors) -> Tensor[]",
    "hadamard_backward_out": "(Tensor grad, Tensor[] factors, Tensor(a!)[] grads) -> ()",
    # One SGD step on the factors of many weights; weights[i] becomes the new product of factors[i * depth:(i + 1) * depth].
    # momenta is empty where momentum is 0. lr and lam are 0-d float32 or float64 tensors, on the CPU or on the weights' device.
    # measures, float64 (weights, 4), gets what the step leaves of each: the number of weights whose magnitude is above the
    # threshold, sum w^2, sum (1/D) sum_d w_d^2, and the misalignment, by which the last exceeds sum |w|^(2/D).
    "factorized_sgd_": (
        "(Tensor(a!)[] weights, Tensor(b!)[] factors, Tensor(c!)[] momenta, Tensor[] grads, Tensor lr, Tensor lam, "
        "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
        "Tensor(d!)? measures=None, float threshold=0.0) -> ()"
    ),
    # The same by Adam. means and squares, one for each factor, are the running means of its gradient and of that squared;
    # largest, with AMSGrad, the largest squares so far, else empty. steps, 0-d float32 tensors on the weights' device, count
    # those of each weight: this one is added. decoupled: lam shrinks the factors beside the gradient.
    "factorized_adam_": (
        "(Tensor(a!)[] weights, Tensor(b!)[] factors, Tensor(c!)[] means, Tensor(d!)[] squares, Tensor(e!)[] largest, "
        "Tensor(f!)[] steps, Tensor[] grads, Tensor lr, Tensor lam, float beta1, float beta2, float eps, float weight_decay, "
        "bool decoupled, bool maximize, Tensor(g!)? measures=None, float threshold=0.0) -> ()"
    ),
    # One proximal SGD step for many weights, in place: a gradient step with momentum, then soft thresholding. lams holds one
    # 0-d tensor for all weights, or one tensor for each that broadcasts to it. momenta is empty where momentum is 0. zeros,
    # int64, is empty or has one element for each weight: it gets the number of exact zeros that the step has left there. lr is
    # as above, and so is a 0-d lam; others are of the weights' dtype, or float32 for half types.
    "prox_sgd_": (
        "(Tensor(a!)[] weights, Tensor(b!)[] momenta, Tensor[] grads, Tensor[] lams, Tensor(c!) zeros, Tensor lr, "
        "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize) -> ()"
    ),
    # sign(input) max(|input| - threshold, 0). threshold broadcasts to input and is of its dtype, or float32 for half types; a
    # 0-d one is float32 or float64, on the CPU or on input's device.
    "soft_threshold": "(Tensor input, Tensor threshold) -> Tensor",
    # grad where |input| > threshold, else 0; where one of the two is NaN, grad
    "soft_threshold_backward": "(Tensor grad, Tensor input, Tensor threshold) -> Tensor",
    # w[o, i, ...] = (lambda_in[i] - lambda_out[o]) phi[o, i, ...]; what is absent counts as 0, and one of the two is there.
    "spectral_weight": "(Tensor phi, Tensor? lambda_in, Tensor? lambda_out) -> Tensor",
    # The gradients of phi, lambda_in and lambda_out from that of w. wanted is a sum of 1 (phi), 2 (lambda_in), 4 (lambda_out);
    # what is not wanted comes back with no elements.
    "spectral_weight_backward": (
        "(Tensor grad, Tensor phi, Tensor? lambda_in, Tensor? lambda_out, int wanted) -> (Tensor, Tensor, Tensor)"
    ),
    # The same in place: grad becomes the gradient of phi, and those of the eigenvalues go where they are wanted.
    "spectral_weight_backward_": (
        "(Tensor(a!) grad, Tensor phi, Tensor? lambda_in, Tensor? lambda_out, Tensor(b!)? d_lambda_in, "
        "Tensor(c!)? d_lambda_out) -> ()"
    ),
    # z = x w^T + bias for x (..., in) and phi (out, in), without w in memory where a kernel can do so
    "spectral_linear": "(Tensor input, Tensor phi, Tensor? lambda_in, Tensor? lambda_out, Tensor? bias) -> Tensor",
    # The gradients of phi, lambda_in, lambda_out, input and bias; wanted as above, with 8 (input) and 16 (bias).
    "spectral_linear_backward": (
        "(Tensor grad, Tensor input, Tensor phi, Tensor? lambda_in, Tensor? lambda_out, int wanted) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    # The sum of the squared L1 norms of the columns of outers, of the squares of inners and of the magnitudes of skips, a 0-d
    # tensor of their dtype, or float32 for half types. There is one matrix at least.
    "ridge_norm": "(Tensor[] outers, Tensor[] inners, Tensor[] skips) -> Tensor",
    # The gradients of all of them, one list after the other; grad is of the norm's dtype.
    "ridge_norm_backward": "(Tensor grad, Tensor[] outers, Tensor[] inners, Tensor[] skips) -> Tensor[]",
    # Steps first, ..., first + steps - 1 of one epoch of many small networks, in place. weights (R, P): each network's
    # parameters in the order of its layers, six numbers of `layers` each; state (R, K, P) of their optimizers; losses (R, 2),
    # float64: the sums over steps of data loss and penalty are added there. x (S, N, in); y (S, N, out) or int64 labels (S, N).
    # codes (R, 7), int64, and rates (R, 8), float64, are what runs differ in; active, int64, lists the runs that move; these
    # three lie on the CPU. See ops/stacked_steps.py.
    "stacked_steps_": (
        "(Tensor(a!) weights, Tensor(b!) state, Tensor(c!) losses, Tensor x, Tensor y, Tensor codes, Tensor rates, "
        "Tensor active, int[] layers, int batch_size, int epoch, int first, int steps) -> ()"
    ),
    # factorized_sgd_ for weights whose `depth` factors have one magnitude: w = r |r|^(depth - 1) of one signed root r a weight,
    # with one momentum. At even depths a weight keeps its sign: a root that would cross 0 is reflected, with its momentum.
    "balanced_sgd_": (
        "(Tensor(a!)[] weights, Tensor(b!)[] roots, Tensor(c!)[] momenta, Tensor[] grads, Tensor lr, Tensor lam, int depth, "
        "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
        "Tensor(d!)? measures=None, float threshold=0.0) -> ()"
    ),
}

# By it a library that was built for other schemas is known: it would take arguments for what they are not.
FINGERPRINT = hashlib.sha256("\n".join(f"{name}{schema}" for name, schema in SCHEMAS.items()).encode()).hexdigest()[:16]
