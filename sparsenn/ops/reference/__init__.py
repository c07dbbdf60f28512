"""The definitions: every operator in plain PyTorch, readable beside the paper.

Registered for every device; the compiled kernels must equal them. Products of half-precision factors are accumulated in float32
and rounded once, as in the kernels.
"""

from sparsenn.ops.reference.layers import (
    composed_linear,
    composed_linear_gradients,
    composed_weight,
    composed_weight_gradients,
    ridge_norm,
    ridge_norm_backward,
    spectral_linear,
    spectral_linear_backward,
    spectral_weight,
    spectral_weight_backward,
    spectral_weight_backward_,
    summed_norm,
    summed_norm_gradients,
)
from sparsenn.ops.reference.measures import MEASURES, measure, misalignment_shares
from sparsenn.ops.reference.products import (
    DTYPES,
    HALF,
    accumulator,
    gradients,
    hadamard,
    hadamard_backward,
    hadamard_backward_out,
    hadamard_out,
    product,
)
from sparsenn.ops.reference.stacked import stacked_steps_
from sparsenn.ops.reference.steps import (
    balanced_sgd_,
    factorized_adam_,
    factorized_sgd_,
    prox_sgd_,
    soft_threshold,
    soft_threshold_backward,
    soft_thresholded,
    thresholded,
    thresholded_gradient,
)

__all__ = [
    "DTYPES",
    "HALF",
    "MEASURES",
    "accumulator",
    "balanced_sgd_",
    "composed_linear",
    "composed_linear_gradients",
    "composed_weight",
    "composed_weight_gradients",
    "factorized_adam_",
    "factorized_sgd_",
    "gradients",
    "hadamard",
    "hadamard_backward",
    "hadamard_backward_out",
    "hadamard_out",
    "measure",
    "misalignment_shares",
    "product",
    "prox_sgd_",
    "ridge_norm",
    "ridge_norm_backward",
    "soft_threshold",
    "soft_threshold_backward",
    "soft_thresholded",
    "spectral_linear",
    "spectral_linear_backward",
    "spectral_weight",
    "spectral_weight_backward",
    "spectral_weight_backward_",
    "stacked_steps_",
    "summed_norm",
    "summed_norm_gradients",
    "thresholded",
    "thresholded_gradient",
]
