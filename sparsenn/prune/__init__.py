"""Nodes that die, and models without them."""

from sparsenn.prune.compact import compact
from sparsenn.prune.nodes import NodePruning, node_relevance, nodes, nodes_by_metric
from sparsenn.prune.report import CompactionReport, LayerWidths, compaction_report

__all__ = [
    "CompactionReport",
    "LayerWidths",
    "NodePruning",
    "compact",
    "compaction_report",
    "node_relevance",
    "nodes",
    "nodes_by_metric",
]
