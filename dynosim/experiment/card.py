"""A result in one line, for a prompt, and as a small table, for a notebook."""

from collections.abc import Mapping
from html import escape
from typing import Any

from dynosim.errors import ConfigError


def line(kind: str, name: str, facts: Mapping[str, str]) -> str:
    """`<Kind name: fact value, fact value>`."""
    told = ", ".join(f"{what} {value}" for what, value in facts.items())
    return f"<{kind} {name}: {told}>" if name else f"<{kind}: {told}>"


def card_html(title: str, facts: Mapping[str, str]) -> str:
    """The facts as an HTML table, for `_repr_html_`."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(what)}</th><td>{escape(value)}</td></tr>"
        for what, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def report_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """What one wants to know of a run first, from its report."""
    facts = {"requests": f"{report['completed_requests']:,} of {report['num_requests']:,}"}
    numbers = {
        "GPUs": "num_gpus",
        "tok/s/GPU": "output_tok_s_per_gpu",
        "TTFT p95 ms": "p95_ttft_ms",
        "ITL p95 ms": "p95_itl_ms",
    }
    for title, key in numbers.items():
        if report.get(key) is not None:
            facts[title] = f"{report[key]:,.4g}"
    if report.get("sla_attainment") is not None:
        facts["within SLA"] = f"{100 * report['sla_attainment']:.1f} %"
    if report.get("saturated"):
        facts["load"] = "more than it sustains"
    return facts


def to_pandas(table: Any) -> Any:
    """A polars table as one of pandas. Raises: ConfigError if that is not installed."""
    try:
        import pandas  # noqa: F401  (what asks for it should say what is missing)
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"to_pandas needs {error.name}: pip install pandas pyarrow") from None
    return table.to_pandas()
