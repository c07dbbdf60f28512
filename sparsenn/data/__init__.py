"""Real data sets as tensors in memory, and what a teacher says of random inputs."""

from sparsenn.data.augment import augment
from sparsenn.data.digits import load_digits
from sparsenn.data.errors import DataError, MissingExtraError, require_extra
from sparsenn.data.features import load_features
from sparsenn.data.housing import load_california_housing
from sparsenn.data.idx import read_idx
from sparsenn.data.images import ImageData, shuffle_pixels
from sparsenn.data.registry import load, names
from sparsenn.data.tabular import TabularData, from_teacher
from sparsenn.data.taught import taught

__all__ = [
    "DataError",
    "ImageData",
    "MissingExtraError",
    "TabularData",
    "augment",
    "from_teacher",
    "load",
    "load_california_housing",
    "load_digits",
    "load_features",
    "names",
    "read_idx",
    "require_extra",
    "shuffle_pixels",
    "taught",
]
