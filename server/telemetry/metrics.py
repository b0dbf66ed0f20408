"""What the server shows of itself to Prometheus.

Knows: names, labels and buckets; the registry's engines. Does not know: routes, pieces, when
something is counted. The names that begin with ``vllm:`` are vLLM's own, with its meaning and
its buckets (``vllm/v1/metrics``), so that what reads a vLLM server reads this one. Collected
here and not in Prometheus' default registry, which every vLLM engine in the process wipes when
it starts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from server.core import Usage
from server.engines.base import Replicated
from server.serving.registry import Registry

# vLLM's, from vllm/v1/metrics/buckets.py.
# fmt: off
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)
E2E_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)
# Where γ is chosen, and finer towards 1, where most of a base model's tokens are.
TOP_PROB_BUCKETS = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0,
)
# fmt: on

FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
"""vLLM's: done, out of room, the client left, failed, ended by a guard against loops."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNKNOWN = "unknown"
"""The route of a request that no route answers, and any other method: a client can't make
labels up."""


class Metrics:
    """Everything that ``/metrics`` shows. ``model`` is always a name that the registry lists."""

    def __init__(self, registry: Registry) -> None:
        self.collected = CollectorRegistry()
        ProcessCollector(registry=self.collected)
        GCCollector(registry=self.collected)
        self.collected.register(EngineCollector(registry))
        models = list(registry.names())

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.collected)

        self._responses = counter(
            "nudge_http_responses",
            "HTTP responses; status 499: the client left before the end.",
            *("route", "method", "status"),
        )
        self._prompt_tokens = counter(
            "vllm:prompt_tokens",
            "Prompt tokens read, as usage counts them: the base model's where it takes part.",
            "model_name",
        )
        self._generation_tokens = counter(
            "vllm:generation_tokens", "Tokens of answers.", "model_name"
        )
        self._finished = counter(
            "vllm:request_success",
            "Answers that ended, however they did.",
            *("model_name", "finished_reason"),
        )
        self._rounds = counter("nudge_rounds", "Rounds: a nudge and its base span.", "model_name")
        self._tokens = counter(
            "nudge_tokens", "Tokens of answers by who wrote them.", "model_name", "speaker"
        )
        self._discarded = counter(
            "nudge_discarded_tokens", "Tokens computed and not taken.", "model_name"
        )
        self._steps = counter(
            "nudge_steps", "Decode positions computed by each model.", "model_name", "speaker"
        )
        self._prefilled = counter(
            "nudge_prefilled_tokens",
            "Tokens read by each model that it did not write just then.",
            "model_name",
            "speaker",
        )
        self._running = Gauge(
            "vllm:num_requests_running",
            "Answers being written.",
            ["model_name"],
            registry=self.collected,
        )
        self._waiting = Gauge(
            "vllm:num_requests_waiting",
            "Answers that wait for their turn.",
            ["model_name"],
            registry=self.collected,
        )
        self._ttft = Histogram(
            "vllm:time_to_first_token_seconds",
            "From a request's arrival to the first piece of an answer.",
            ["model_name"],
            buckets=TTFT_BUCKETS,
            registry=self.collected,
        )
        self._e2e = Histogram(
            "vllm:e2e_request_latency_seconds",
            "From a request's arrival to the end of an answer.",
            ["model_name"],
            buckets=E2E_BUCKETS,
            registry=self.collected,
        )
        self._itl = Tally(
            "vllm:inter_token_latency_seconds",
            "Between two pieces of an answer (a base token or an aligned word each).",
            ["model_name"],
            ITL_BUCKETS,
        )
        self._top_prob = Tally(
            "nudge_base_top_prob",
            "The base model's top-1 probability, where its token was taken and where not.",
            ["model_name", "taken"],
            TOP_PROB_BUCKETS,
        )
        self.collected.register(self._itl)
        self.collected.register(self._top_prob)
        # Shown as 0 from the start, as vLLM does: a rate needs the value before the first event.
        for model in models:
            for each in (
                *(self._prompt_tokens, self._generation_tokens, self._rounds, self._discarded),
                *(self._running, self._waiting, self._ttft, self._e2e),
            ):
                each.labels(model)
            for reason in FINISHED_REASONS:
                self._finished.labels(model, reason)
            for speaker in ("base", "aligned"):
                self._tokens.labels(model, speaker)
                self._steps.labels(model, speaker)
                self._prefilled.labels(model, speaker)
            self._itl.add((model,), ())
            if not model.endswith(":aligned"):
                self._top_prob.add((model, "yes"), ())
            if ":" not in model:
                self._top_prob.add((model, "no"), ())

    def responded(self, route: str | None, method: str, status: int) -> None:
        """``route``: its template; None where no route answers."""
        method = method if method in METHODS else UNKNOWN
        self._responses.labels(UNKNOWN if route is None else route, method, str(status)).inc()

    def running(self, model: str, more: int) -> None:
        """So many more answers are being written, or fewer."""
        self._running.labels(model).inc(more)

    def waiting(self, model: str, more: int) -> None:
        """So many more answers wait for their turn, or fewer."""
        self._waiting.labels(model).inc(more)

    def answered(
        self,
        model: str,
        *,
        reason: str | None,
        first_s: float | None,
        whole_s: float | None,
        gaps_s: Iterable[float],
        taken: Iterable[float],
        rejected: Iterable[float],
    ) -> None:
        """One answer is over.

        Args:
            reason: of `FINISHED_REASONS`; None: it was refused before it began.
            first_s, whole_s: seconds from the request's arrival to its first piece and its end.
            gaps_s: seconds between its pieces.
            taken, rejected: the base model's p1 where its token was taken, and where not.
        """
        if reason is not None:
            self._finished.labels(model, reason).inc()
        if first_s is not None:
            self._ttft.labels(model).observe(first_s)
        if whole_s is not None:
            self._e2e.labels(model).observe(whole_s)
        self._itl.add((model,), gaps_s)
        self._top_prob.add((model, "yes"), taken)
        self._top_prob.add((model, "no"), rejected)

    def used(self, model: str, usage: Usage) -> None:
        """What one request cost."""
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._generation_tokens.labels(model).inc(usage.completion_tokens)
        self._rounds.labels(model).inc(usage.rounds)
        self._discarded.labels(model).inc(usage.discarded_tokens)
        self._tokens.labels(model, "base").inc(usage.base_tokens)
        self._tokens.labels(model, "aligned").inc(usage.aligned_tokens)
        self._steps.labels(model, "base").inc(usage.base_steps)
        self._steps.labels(model, "aligned").inc(usage.aligned_steps)
        if usage.untuned_steps:  # a policy with a third model
            self._steps.labels(model, "untuned").inc(usage.untuned_steps)
            self._prefilled.labels(model, "untuned").inc(usage.untuned_prefilled)
        self._prefilled.labels(model, "base").inc(usage.base_prefilled)
        self._prefilled.labels(model, "aligned").inc(usage.aligned_prefilled)


class Tally:
    """A histogram for values that come by the thousand, at an answer's end: a tenth of the time
    of prometheus_client's, which would hold up the other answers."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = [*buckets, float("inf")]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], values: Iterable[float]) -> None:
        counts = self._counts.setdefault(labels, [0] * len(self._bounds))
        total, bounds = 0.0, self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1  # a bucket holds its upper bound too
            total += value
        self._sums[labels] = self._sums.get(labels, 0.0) + total

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, counts in self._counts.items():
            buckets, below = [], 0
            for bound, count in zip(self._bounds, counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family


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
        restarts = CounterMetricFamily(
            "nudge_engine_restarts", "Times it was started again.", labels=["engine"]
        )
        engines = self._registry.engines
        for name in engines.names:
            engine = engines.get(name)
            up.add_metric([name], int(engine is not None and engine.alive))
            running.add_metric([name], 0 if engine is None else engine.running)
            restarts.add_metric([name], engines.restarts[name])
        yield from _replicas({n: e for n, e in engines.items() if isinstance(e, Replicated)})
        degraded = CounterMetricFamily(
            "nudge_degraded_answers",
            "Answers by the aligned model alone while the base engine was dead.",
            labels=["model_name"],
        )
        for name in self._registry.settings.models:
            degraded.add_metric([name], self._registry.degraded_answers[name])
        yield from (up, running, restarts, degraded)


def _replicas(engines: Mapping[str, Replicated]) -> Iterator[Metric]:
    """The servers of engines elsewhere."""
    labels = ["engine", "url"]
    up = GaugeMetricFamily("nudge_replica_up", "1 if the server gets turns.", labels=labels)
    sessions = GaugeMetricFamily(
        "nudge_replica_sessions", "Answers whose turns go to the server.", labels=labels
    )
    failures = CounterMetricFamily(
        "nudge_replica_failures", "Requests to the server that came to nothing.", labels=labels
    )
    for name, engine in engines.items():
        for url, server in engine.servers.items():
            up.add_metric([name, url], server.up)
            sessions.add_metric([name, url], server.sessions)
            failures.add_metric([name, url], server.failures)
    yield from (up, sessions, failures)
