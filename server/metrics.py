"""What the server shows of itself to Prometheus.

Knows: the registry's engines. Does not know: routes. Collected here and not in Prometheus'
default registry, which every vLLM engine in the process wipes when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from server.registry import Registry


class EngineCollector:
    """The engines' state at the moment of the scrape: nothing is counted in a hot path."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "nudge_engine_up", "1 if the engine is loaded and lives.", labels=["engine"]
        )
        running = GaugeMetricFamily(
            "nudge_engine_turns_running", "Turns in the engine now.", labels=["engine"]
        )
        for name in self._registry.settings.engines:
            engine = self._registry.engines.get(name)
            up.add_metric([name], int(engine is not None and engine.alive))
            running.add_metric([name], 0 if engine is None else engine.running)
        yield up
        yield running


def collector(registry: Registry) -> CollectorRegistry:
    metrics = CollectorRegistry()
    metrics.register(EngineCollector(registry))
    return metrics
