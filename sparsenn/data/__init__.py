"""Real data sets as tensors in memory, and what a teacher says of random inputs."""

from sparsenn.data.augment import augment
from sparsenn.data.digits import load_digits
from sparsenn.data.errors import DataError, MissingExtraError, require_extra
from sparsenn.data.idx import read_idx
from sparsenn.data.images import ImageData
from sparsenn.data.registry import load, names
from sparsenn.data.taught import taught

__all__ = [
    "DataError",
    "ImageData",
    "MissingExtraError",
    "augment",
    "load",
    "load_digits",
    "names",
    "read_idx",
    "require_extra",
    "taught",
]
