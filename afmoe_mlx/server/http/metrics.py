"""What /metrics tells, in Prometheus' form: of the requests that are over, and of the engine at this moment."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ..engine.engine import EngineState
from ..question import Call

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# Why an answer ends that did not fail.
WHOLE = frozenset({"stop", "length", "tool_calls"})
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SECONDS_A_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """In a registry of its own, every name with the prefix afmoe_mlx_."""

    def __init__(self, state: Callable[[], EngineState]) -> None:
        disable_created_metrics()  # a second series for each, of when it was begun
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "afmoe_mlx_requests", "Requests that are over.", ["route", "status"], registry=registry
        )
        self._running = Gauge(
            "afmoe_mlx_requests_running", "Requests under way, those that wait too.", registry=registry
        )
        self._errors = Counter("afmoe_mlx_errors", "Requests without a whole answer.", ["code"], registry=registry)
        self._prompt = Counter("afmoe_mlx_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter("afmoe_mlx_cached_tokens", "Of those, known and not run.", registry=registry)
        self._completion = Counter("afmoe_mlx_completion_tokens", "Tokens of answers.", registry=registry)
        self._first = Histogram(
            "afmoe_mlx_time_to_first_token_seconds",
            "From a request to its first token.",
            registry=registry,
            buckets=SECONDS,
        )
        self._seconds = Histogram(
            "afmoe_mlx_request_seconds", "From a request to its end.", registry=registry, buckets=SECONDS
        )
        self._a_token = Histogram(
            "afmoe_mlx_time_per_token_seconds",
            "Of the tokens of an answer after its first.",
            registry=registry,
            buckets=SECONDS_A_TOKEN,
        )
        registry.register(_Now(state))

    def running(self) -> AbstractContextManager[None]:
        """Count a request as one under way while it is answered."""
        return self._running.track_inprogress()

    def count(self, call: Call, status: int) -> None:
        """Take a finished request."""
        self._requests.labels(call.route, str(status)).inc()
        if call.reason is not None and call.reason not in WHOLE:
            self._errors.labels(call.reason).inc()
        self._prompt.inc(call.prompt_tokens)
        self._cached.inc(call.cached_tokens)
        self._completion.inc(call.completion_tokens)
        if call.seconds is None:
            return
        self._seconds.observe(call.seconds)
        if call.first_token is not None:
            self._first.observe(call.first_token)
            if call.completion_tokens > 1:
                self._a_token.observe((call.seconds - call.first_token) / (call.completion_tokens - 1))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Now(Collector):
    """The engine's state when it is asked for."""

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        gauges = {
            "up": ("1 if the engine gets on with what there is to do.", int(state.is_alive)),
            "model_loaded": ("1 if the weights are in memory.", int(state.is_loaded)),
            "batch_rows": ("Answers that are being written, or whose prompts are being read.", state.running),
            "requests_waiting": ("Requests that are not begun.", state.waiting),
            "cache_bytes": ("Bytes of keys and values of the rows.", state.cache_bytes),
            "store_bytes": ("Those of prefixes kept in memory.", state.store_bytes),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"afmoe_mlx_{name}", words, value=value)
        yield CounterMetricFamily("afmoe_mlx_engine_restarts", "Times the engine was built anew.", value=state.failures)
