"""Many small networks trained as one: a leading run dimension, and everything else a run's own."""

from sparsenn.training.stacked.run import Outcome, Run
from sparsenn.training.stacked.stack import Stack, train

__all__ = ["Outcome", "Run", "Stack", "train"]
