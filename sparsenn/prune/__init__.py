"""Units that are dead, and models without them."""

from sparsenn.prune.compact import compact

__all__ = ["compact"]
