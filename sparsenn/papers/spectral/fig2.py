"""Figure 2: the core that is left against the student's width, and what its removal costs."""

from functools import partial

from sparsenn.papers.spectral.core import reproduce_core

reproduce = partial(reproduce_core, "fig2", "teacher")
