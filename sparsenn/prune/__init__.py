"""Weights and nodes that go: the pruning baselines and their masks, nodes that die, and models without them."""

from sparsenn.prune.compact import compact
from sparsenn.prune.curve import pruning_curve
from sparsenn.prune.masks import Mask, apply_masks, masks, remove, stored_masks
from sparsenn.prune.nodes import NodePruning, node_relevance, nodes, nodes_by_metric
from sparsenn.prune.report import CompactionReport, LayerWidths, compaction_report
from sparsenn.prune.scores import (
    LayerCollapseError,
    LayerCollapseWarning,
    PrunedTensor,
    Pruning,
    compression_limit,
    magnitude,
    random,
    snip,
    synflow,
)

__all__ = [
    "CompactionReport",
    "LayerCollapseError",
    "LayerCollapseWarning",
    "LayerWidths",
    "Mask",
    "NodePruning",
    "PrunedTensor",
    "Pruning",
    "apply_masks",
    "compact",
    "compaction_report",
    "compression_limit",
    "magnitude",
    "masks",
    "node_relevance",
    "nodes",
    "nodes_by_metric",
    "pruning_curve",
    "random",
    "remove",
    "snip",
    "stored_masks",
    "synflow",
]
