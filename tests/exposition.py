"""What a Prometheus page says, as a plain table."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

COMMON = ("dynamo_namespace", "model")


def samples(page: bytes | CollectorRegistry, without: Sequence[str] = COMMON) -> dict[str, float]:
    """Value by `name` or `name{label=value,...}`, `without` the labels that all samples share."""
    is_text = isinstance(page, bytes)
    families = text_string_to_metric_families(page.decode()) if is_text else page.collect()
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(
                f"{k}={v}" for k, v in sorted(sample.labels.items()) if k not in without
            )
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            if sample.name.endswith("_created"):
                continue
            assert name not in found, name
            found[name] = sample.value
    return found


def histogram(name: str, bounds: Sequence[float], values: Iterable[float]) -> Mapping[str, float]:
    """The samples of a histogram of these values: how many are up to each bound."""
    ordered = sorted(values)
    table = {
        f"{name}_bucket{{le={float(bound)}}}": float(bisect_right(ordered, bound))
        for bound in bounds
    }
    count = float(len(ordered))
    return table | {
        f"{name}_bucket{{le=+Inf}}": count,
        f"{name}_count": count,
        f"{name}_sum": sum(ordered),
    }
