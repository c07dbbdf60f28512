"""Starting values for the factors of a deep weight factorization: draws, and splits of given weights."""

from sparsenn.init.factors import (
    FACTOR_INITS,
    MIN_ABS,
    MIN_WEIGHT,
    dwf_,
    fill_,
    preserve_,
    root_,
    root_mean_square,
    standard_,
    variance_matching_,
)
from sparsenn.init.gaussian import gaussian_product_
from sparsenn.init.groups import MIN_GAIN, split_groups_

__all__ = [
    "FACTOR_INITS",
    "MIN_ABS",
    "MIN_GAIN",
    "MIN_WEIGHT",
    "dwf_",
    "fill_",
    "gaussian_product_",
    "preserve_",
    "root_",
    "root_mean_square",
    "split_groups_",
    "standard_",
    "variance_matching_",
]
