"""What the server counts, in the form that Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0, 16.0)
DISAGREEMENT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Measures:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("mbrl_requests", "Requests that were answered.", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            "mbrl_request_seconds", "Time until the last byte of an answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.rows = Counter("mbrl_served_observations", "Observations in which an action was asked for.", registry=self.registry)
        self.outside = Counter(
            "mbrl_served_observations_out_of_range",
            "Those of them that leave the range of the training data by one number at least.",
            registry=self.registry,
        )
        self.disagreement = Histogram(
            "mbrl_disagreement",
            "Disagreement of the ensemble about served observations and actions, a sample of them.",
            buckets=DISAGREEMENT,
            registry=self.registry,
        )
        self.transitions = Counter("mbrl_transitions", "Real transitions that were taken in.", registry=self.registry)
        self.dropped = Gauge("mbrl_dropped_bytes", "Bytes of an unfinished record found at the start.", registry=self.registry)
        self.reloads = Counter("mbrl_reloads", "Exports that were looked at.", ["result"], registry=self.registry)
        self._cached: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        found = self._cached.get((path, status))
        if found is None:
            found = self._requests.labels(path, str(status)), self._seconds.labels(path)
            self._cached[path, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
