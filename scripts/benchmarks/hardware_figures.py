"""Describes a cluster of GPUs that is not available, with the few figures that the cost model needs."""

import math
from dataclasses import dataclass, fields
from typing import Any

from .cost_model import CostModel

ASSUMPTIONS = "scaling: assumptions"


@dataclass(frozen=True)
class Cluster:
    """Assumed figures of a cluster. Every field is an option of the command; `SOURCES` has the origin of each default.

    Attributes:
        utilization: share of the peak FLOP/s that forward and backward passes reach.
        memory_gb_per_second: memory bandwidth of the optimizer update.
        node_gb_per_second, network_gb_per_second: bandwidth at which a rank of a ring sends, and also receives, within
            a node and between nodes.
        node_line_gb_per_second, network_line_gb_per_second: nominal bandwidth of the links within a node and between
            nodes.
        node_latency_microseconds, network_latency_microseconds: latency of one step of the ring within a node and
            between nodes.
        critical_batch_tokens: batch size beyond which a larger batch saves few steps.
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
        """Return the cost model of a number of GPUs.

        The ring enters every node once, and its bandwidth is the one of its slowest link.
        """
        nodes = math.ceil(gpus / self.gpus_per_node)
        crossing = (nodes if nodes > 1 else 0) / gpus
        latency = (1 - crossing) * self.node_latency_microseconds + crossing * self.network_latency_microseconds
        bandwidth = self.node_gb_per_second if nodes == 1 else self.network_gb_per_second
        rate = self.utilization * self.peak_tflops * 1e12
        return CostModel(1e-6 * latency, 1e9 * bandwidth, {"ar": rate, "meta": rate})

    def line_gb_per_second(self, gpus: int) -> float:
        """Return the nominal bandwidth of the slowest link, which no software can exceed."""
        if gpus <= self.gpus_per_node:
            return self.node_line_gb_per_second
        return min(self.node_line_gb_per_second, self.network_line_gb_per_second)


#: field of a Cluster -> origin of its default
SOURCES = {
    "peak_tflops": "H100 SXM data sheet, dense bf16",
    "utilization": "a prototype, not this code: 936M parameters on one H100, 8 x 2048 tokens; 55 to 56 % for tasks",
    "memory_gb_per_second": "H100 SXM data sheet: 3350; as in docs/performance.md",
    "gpus_per_node": "DGX H100",
    "node_gb_per_second": "assumed: bus bandwidth of a ring over NVLink; nccl-tests with in-switch reduction reach 460",
    "network_gb_per_second": "assumed: bus bandwidth between nodes with 8 x 400 Gb/s, half of the nominal bandwidth",
    "node_line_gb_per_second": "H100 SXM data sheet: 900 in both directions",
    "network_line_gb_per_second": "8 x 400 Gb/s per node, one rail per GPU",
    "node_latency_microseconds": "NCCL tuning table, ring, simple protocol, NVLink",
    "network_latency_microseconds": "NCCL tuning table, ring, simple protocol, network",
    "critical_batch_tokens": "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4: 2e8 / loss^4.76 tokens, at 3 nats",
}


def assumptions(cluster: Cluster) -> list[dict[str, Any]]:
    """Return one row per figure that the projection assumes, with its value and its origin."""
    default, rows = Cluster(), []
    for field in fields(cluster):
        value = getattr(cluster, field.name)
        source = SOURCES[field.name] if value == getattr(default, field.name) else "given"
        rows.append({"command": ASSUMPTIONS, "assumed": field.name, "value": value, "source": source})
    return rows
