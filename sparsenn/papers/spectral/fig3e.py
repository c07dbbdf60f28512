"""Figure 3 e and j: CIFAR-100 features of a pretrained ResNet-50, under three spectral layers with batch normalization."""

from functools import partial

from sparsenn.papers.spectral.core import reproduce_core

reproduce = partial(reproduce_core, "fig3e", "cifar100-features")
