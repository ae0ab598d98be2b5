"""Nodes of GPUs that are not at hand, in the few figures that the cost model takes of them."""

import math
from dataclasses import dataclass, fields
from typing import Any

from .cost_model import CostModel

ASSUMPTIONS = "scaling: assumptions"


@dataclass(frozen=True)
class Cluster:
    """As assumed. Every field is an option of the command; `SOURCES` says where its default is from.

    Attributes:
        utilization: of the peak, by forward and backward passes.
        memory_gb_per_second: that the update moves.
        node_gb_per_second, network_gb_per_second: that a rank of a ring sends, and receives, in a node and over nodes.
        node_line_gb_per_second, network_line_gb_per_second: the same, of what the links are built for.
        node_latency_microseconds, network_latency_microseconds: of a step of the ring.
        critical_batch_tokens: beyond which a larger batch saves few steps.
    """

    peak_tflops: float = 989.0
    utilization: float = 0.56
    memory_gb_per_second: float = 3000.0
    gpus_per_node: int = 8
    node_gb_per_second: float = 350.0
    network_gb_per_second: float = 200.0
    node_line_gb_per_second: float = 450.0
    network_line_gb_per_second: float = 400.0
    node_latency_microseconds: float = 3.4
    network_latency_microseconds: float = 14.0
    critical_batch_tokens: float = 1.1e6

    def model(self, gpus: int) -> CostModel:
        """On so many GPUs: a ring goes once into every node, and is as fast as its slowest link."""
        nodes = math.ceil(gpus / self.gpus_per_node)
        crossing = (nodes if nodes > 1 else 0) / gpus
        latency = (1 - crossing) * self.node_latency_microseconds + crossing * self.network_latency_microseconds
        bandwidth = self.node_gb_per_second if nodes == 1 else self.network_gb_per_second
        rate = self.utilization * self.peak_tflops * 1e12
        return CostModel(1e-6 * latency, 1e9 * bandwidth, {"ar": rate, "meta": rate})

    def line_gb_per_second(self, gpus: int) -> float:
        """What the links are built for, which no software exceeds."""
        if gpus <= self.gpus_per_node:
            return self.node_line_gb_per_second
        return min(self.node_line_gb_per_second, self.network_line_gb_per_second)


#: field of a Cluster -> where its default is from
SOURCES = {
    "peak_tflops": "H100 SXM data sheet, dense bf16",
    "utilization": "936M-parameter model on one H100, 8 x 2048 tokens, compiled whole, measured; of tasks 55 to 56 %",
    "memory_gb_per_second": "H100 SXM data sheet: 3350; as in docs/performance.md",
    "gpus_per_node": "DGX H100",
    "node_gb_per_second": "bus bandwidth of a ring over NVLink: assumed; nccl-tests of in-switch sums give 460",
    "network_gb_per_second": "bus bandwidth over nodes of 8 x 400 Gb/s: assumed, half of the line",
    "node_line_gb_per_second": "H100 SXM data sheet: 900 in both directions",
    "network_line_gb_per_second": "8 x 400 Gb/s a node, each GPU by its own rail",
    "node_latency_microseconds": "NCCL's own tuning table, ring, simple protocol, NVLink",
    "network_latency_microseconds": "NCCL's own tuning table, ring, simple protocol, network",
    "critical_batch_tokens": "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4: 2e8 / loss^4.76 tokens, at 3 nats",
}


def assumptions(cluster: Cluster) -> list[dict[str, Any]]:
    """Every figure that the projection takes as given, and where it is from."""
    default, rows = Cluster(), []
    for field in fields(cluster):
        value = getattr(cluster, field.name)
        source = SOURCES[field.name] if value == getattr(default, field.name) else "given"
        rows.append({"command": ASSUMPTIONS, "assumed": field.name, "value": value, "source": source})
    return rows
