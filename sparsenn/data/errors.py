"""What can go wrong between a data set's name and its tensors."""

from __future__ import annotations

from sparsenn._extras import MissingExtraError, require_extra

__all__ = ["DataError", "MissingExtraError", "require_extra"]


class DataError(RuntimeError):
    """A data file is missing, or failed a check; the message names the file, the check and the cure."""

    exit_code = 1
