"""Figure 3 d and i: California Housing."""

from functools import partial

from sparsenn.papers.spectral.core import reproduce_core

reproduce = partial(reproduce_core, "fig3d", "california-housing")
