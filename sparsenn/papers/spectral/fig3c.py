"""Figure 3 c and h: a teacher with hidden layers of different width."""

from functools import partial

from sparsenn.papers.spectral.core import reproduce_core

reproduce = partial(reproduce_core, "fig3c", "heterogeneous-teacher")
