"""Figure 3 a and f: shuffled Fashion-MNIST."""

from functools import partial

from sparsenn.papers.spectral.core import reproduce_core

reproduce = partial(reproduce_core, "fig3a", "shuffled-fashion-mnist")
