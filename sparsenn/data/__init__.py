"""Real data sets as tensors in memory, and the synthetic ones of a teacher."""

from sparsenn.data.digits import load_digits
from sparsenn.data.errors import DataError, MissingExtraError, require_extra
from sparsenn.data.features import load_features
from sparsenn.data.housing import load_california_housing
from sparsenn.data.idx import read_idx
from sparsenn.data.images import ImageData, shuffle_pixels
from sparsenn.data.registry import load, names
from sparsenn.data.tabular import TabularData, from_teacher

__all__ = [
    "DataError",
    "ImageData",
    "MissingExtraError",
    "TabularData",
    "from_teacher",
    "load",
    "load_california_housing",
    "load_digits",
    "load_features",
    "names",
    "read_idx",
    "require_extra",
    "shuffle_pixels",
]
