"""Figure 3 b and g: shuffled MNIST."""

from functools import partial

from sparsenn.papers.spectral.core import reproduce_core

reproduce = partial(reproduce_core, "fig3b", "shuffled-mnist")
