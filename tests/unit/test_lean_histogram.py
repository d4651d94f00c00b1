"""The histogram for tokens says what prometheus_client's own would."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from dynosim_runtime.serving.histogram import LeanHistogram

BUCKETS = (0.001, 0.002, 0.5, 1)


def test_it_is_exposed_as_a_prometheus_histogram() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    plain = Histogram("gap_seconds", "Gaps.", ("model",), buckets=BUCKETS, registry=theirs)
    lean = LeanHistogram("gap_seconds", "Gaps.", BUCKETS, {"model": "m"}, ours)
    for value in (0.0, 0.001, 0.0011, 0.3, 1.0, 7.0):
        plain.labels(model="m").observe(value)
        lean.observe(value)
    for _ in range(3):
        plain.labels(model="m").observe(0.25)
    lean.observe(0.25, 3)
    expected = [
        line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line
    ]
    assert generate_latest(ours).decode().splitlines() == expected
