"""Many small networks trained as one: a leading run dimension, and everything else a run's own."""

from sparsenn.training.stacked.run import Outcome, Run
from sparsenn.training.stacked.runner import Job, figures, run_jobs
from sparsenn.training.stacked.stack import Stack, train

__all__ = ["Job", "Outcome", "Run", "Stack", "figures", "run_jobs", "train"]
