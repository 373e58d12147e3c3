"""What the server counts, for Prometheus. The names after `pllava_` are those of vLLM where it counts the same."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # bounds of the histograms' buckets


class Metrics:
    """
    All metrics of a server, in a registry of their own.

    `under_way` counts the chat completions in progress and `running` those that the model works on, at most one.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.under_way = self.running = 0
        self._gauge("pllava_num_requests_running", "Chat completions being generated.", lambda: self.running)
        self._gauge(
            "pllava_num_requests_waiting",
            "Chat completions whose body or media are read, or that wait for the model.",
            lambda: max(self.under_way - self.running, 0),
        )
        self.requests = Counter("pllava_requests", "Requests.", ["path", "status"], registry=self.registry)
        self.prompt_tokens = Counter("pllava_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.cached_tokens = Counter(
            "pllava_prefix_cache_hits",
            "Tokens of prompts that an earlier request had computed.",
            registry=self.registry,
        )
        self.generation_tokens = Counter("pllava_generation_tokens", "Generated tokens.", registry=self.registry)
        self.time_to_first_token = self._histogram(
            "pllava_time_to_first_token_seconds", "From the arrival of a request to the first token of its answer."
        )
        self.generation_seconds = self._histogram("pllava_generation_seconds", "The model's work on an answer.")
        self.media_seconds = self._histogram(
            "pllava_media_decode_seconds", "Fetching, checking and decoding the media of a request."
        )

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SECONDS, registry=self.registry)
