"""The server's Prometheus metrics, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from kaito_presets.inference.engine import ModelInfo

__all__ = ["Metrics"]

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Every series is there from the start, at zero, so that a rate over it is right from the first request."""

    def __init__(self, routes: tuple[str, ...] = ()) -> None:
        self.registry = CollectorRegistry()
        prefix = "kaito_inference_"
        self.requests = Counter(
            f"{prefix}requests",
            "HTTP requests answered, by route and status code.",
            ["route", "code"],
            registry=self.registry,
        )
        self.duration = Histogram(
            f"{prefix}request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.first_token = Histogram(
            f"{prefix}time_to_first_token_seconds",
            "From a streamed request's arrival to its first text.",
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.in_flight = Gauge(f"{prefix}requests_in_flight", "HTTP requests being answered.", registry=self.registry)
        self.waiting = Gauge(f"{prefix}requests_waiting", "Requests that wait for the model.", registry=self.registry)
        self.running = Gauge(f"{prefix}requests_running", "Requests that the model works on.", registry=self.registry)
        self.rejected = Counter(
            f"{prefix}requests_rejected", "Requests refused because too many were waiting.", registry=self.registry
        )
        self.cancelled = Counter(
            f"{prefix}requests_cancelled", "Requests whose client went away before the end.", registry=self.registry
        )
        self.prompt_tokens = Counter(f"{prefix}prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.generated_tokens = Counter(f"{prefix}generated_tokens", "Tokens generated.", registry=self.registry)
        self.load_seconds = Gauge(f"{prefix}model_load_seconds", "How long loading took.", registry=self.registry)
        self.info = Gauge(
            f"{prefix}model_info",
            "The model that is served; 1 once it is loaded.",
            ["model", "architecture", "dtype", "device", "weights"],
            registry=self.registry,
        )
        self.adapters = Gauge(
            f"{prefix}adapter_strength",
            "By what an active adapter's update of the model is multiplied.",
            ["adapter"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        for route in routes:
            self.requests.labels(route, "200")
            self.duration.labels(route)

    def loaded(self, info: ModelInfo, seconds: float) -> None:
        """Publish the model, and that loading it took *seconds*."""
        self.load_seconds.set(seconds)
        self.info.labels(info.name, info.architecture, info.dtype, info.device, info.weights).set(1)
        for name, strength in info.adapters:
            self.adapters.labels(name).set(strength)

    def exposition(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self.registry)
