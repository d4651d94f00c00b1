"""What differs between two runs or two sweeps, on a terminal of 80 columns."""

import textwrap
from collections.abc import Sequence
from typing import Any

from dynosim.compare.result_folder import RunFolder, SweepFolder
from dynosim.compare.run_diff import PARTS, Change, KeyChange, RequestChange, RunDiff
from dynosim.compare.sweep_diff import LayoutDiff, SweepDiff, Winner
from dynosim.metrics.wait_words import duration

WIDTH = 80
_SHOWN_KEYS = 12
_SHOWN_LAYOUTS = 10
_SHOWN_NAMES = 4
_TITLES = {
    "mean_ttft_ms": "TTFT mean ms",
    "median_ttft_ms": "TTFT p50 ms",
    "p95_ttft_ms": "TTFT p95 ms",
    "p99_ttft_ms": "TTFT p99 ms",
    "mean_tpot_ms": "TPOT mean ms",
    "p95_tpot_ms": "TPOT p95 ms",
    "mean_e2e_latency_ms": "E2E mean ms",
    "p95_e2e_latency_ms": "E2E p95 ms",
    "sla_attainment": "within SLA %",
    "output_throughput_tok_s": "output tok/s",
    "output_tok_s_per_gpu": "tok/s per GPU",
    "request_throughput_rps": "requests/s",
    "completed_requests": "completed",
    "prefix_cache_reused_ratio": "cache reuse %",
    "preemptions": "preemptions",
    "num_gpus": "GPUs",
    "capacity_rps": "capacity req/s",
}
_PART_TITLES = {
    "router_ms": "router queue ms",
    "queue_ms": "worker queue ms",
    "prefill_ms": "prefill ms",
    "decode_ms": "decode ms",
    "cached_tokens": "cached tokens",
    "preemptions": "preemptions",
}
_SHARES = ("sla_attainment", "prefix_cache_reused_ratio")  # shown in percent
_PART_WORDS = {"router_ms": "in the router", "queue_ms": "in the queue", "prefill_ms": "prefill"}


def print_run_diff(diff: RunDiff, a: RunFolder, b: RunFolder) -> None:
    """The verdict first, then configuration, results, what explains them, and requests."""
    _wrapped(f"A  {a.path}")
    _wrapped(f"B  {b.path}")
    _wrapped(_run_verdict(diff))
    _print_keys(diff.keys)
    print()
    _wrapped(_pairing(diff))
    if not _differs(diff):
        return
    print(_head("95 % of the change"))
    for change in diff.results:
        print(_line(_TITLES[change.key], change))
    print()
    print("means of the pairs" if diff.is_paired else "means of each run's requests")
    for change in diff.parts:
        print(_line(_PART_TITLES[change.key], change))
    if diff.moved_share is not None:
        print(f"{100 * diff.moved_share:.1f} % of the pairs went to another worker")
    _print_requests("slower", diff.worst)
    _print_requests("faster", diff.best)
    for name, is_saturated in zip("AB", diff.saturated, strict=True):
        if is_saturated:
            _wrapped(f"note: {name} is saturated: its TTFT depends on how long the trace is")


def _run_verdict(diff: RunDiff) -> str:
    """One sentence: is B faster to the first token, and why."""
    ttft = next((change for change in diff.results if change.key == "mean_ttft_ms"), None)
    if ttft is None or ttft.change is None:
        return "nothing to compare: no request completed in one of them"
    if not _differs(diff):
        return "no difference in the results"
    if not ttft.change or ttft.can_be_told is False:
        return "no difference in mean TTFT that can be told" + _told_others(diff)
    parts = [change for change in diff.parts if change.key in PARTS and change.change]
    ordered = sorted(parts, key=lambda change: -abs(change.change or 0.0))
    words = ", ".join(
        f"{_PART_WORDS[change.key]} {_signed_ms(change.change)}" for change in ordered
    )
    faster = "faster" if ttft.change < 0 else "slower"
    return (
        f"B is {faster}: TTFT {_signed_ms(ttft.change)} in the mean"
        f"{'' if ttft.percent is None else f' ({ttft.percent:+.1f} %)'}: {words}"
    )


def _differs(diff: RunDiff) -> bool:
    return any(change.a != change.b for change in (*diff.results, *diff.parts))


def _told_others(diff: RunDiff) -> str:
    others = [_TITLES[change.key] for change in diff.results if change.can_be_told]
    return f"; but in {', '.join(others)}" if others else ""


def _pairing(diff: RunDiff) -> str:
    first, second = diff.num_requests
    if diff.is_paired:
        times = "" if diff.same_arrivals else " at other times"
        return (
            f"the same {first:,} requests{times}: compared one by one, "
            f"{diff.num_pairs:,} completed in both"
        )
    return f"other requests ({first:,} and {second:,}): not paired, so intervals are wide"


def _print_keys(keys: Sequence[KeyChange]) -> None:
    if not keys:
        print("configuration: the same")
        return
    print(f"configuration: {len(keys)} {'key differs' if len(keys) == 1 else 'keys differ'}")
    for change in keys[:_SHOWN_KEYS]:
        _wrapped(f"  {change.key}: {_value(change.a)} -> {_value(change.b)}", "    ")
    if len(keys) > _SHOWN_KEYS:
        print(f"  and {len(keys) - _SHOWN_KEYS} more (--json has all)")


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _head(interval: str, title: str = "") -> str:
    return f"{title:<20}{'A':>10}{'B':>10}{'change':>10}{'%':>8} {interval:>21}".rstrip()


def _line(title: str, change: Change) -> str:
    percent = "" if change.percent is None else f"{change.percent:+.1f}"
    if change.change == 0:
        percent = "="
    change = _in_percent(change)
    a, b = _number(change.a), _number(change.b)
    by = _number(change.change, signed=bool(change.change))
    return f"{title:<20}{a:>10}{b:>10}{by:>10}{percent:>8} {_interval(change):>21}".rstrip()


def _in_percent(change: Change) -> Change:
    if change.key not in _SHARES:
        return change
    values = (change.a, change.b, change.low, change.high)
    return Change(change.key, *(None if value is None else 100 * value for value in values))


def _interval(change: Change) -> str:
    """The interval, marked where no change lies inside."""
    if change.low is None or change.high is None or change.change == 0:
        return ""
    text = f"{_number(change.low, signed=True)} to {_number(change.high, signed=True)}"
    return text if change.can_be_told else f"({text})"


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    sign = "+" if signed else ""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.3g}" if size >= 0.001 else f"{value:{sign}.0e}"


def _print_requests(what: str, requests: Sequence[RequestChange]) -> None:
    if not requests:
        return
    print(f"most {what} to the first token")
    for one in requests:
        part = f"{_PART_WORDS[one.part]} {_signed_ms(one.part_ms)}"
        _wrapped(f"  {one.request_id}: {duration(one.a_ms)} -> {duration(one.b_ms)}, mostly {part}")


def _signed_ms(change_ms: float | None) -> str:
    """A change of a time for people."""
    value = change_ms or 0.0
    return f"{'+' if value >= 0 else '-'}{duration(abs(value))}"


# ---- sweeps --------------------------------------------------------------------------------------


def print_sweep_diff(diff: SweepDiff, a: SweepFolder, b: SweepFolder) -> None:
    """The winners first, then configuration, and the layouts that both have."""
    _wrapped(f"A  {a.path}")
    _wrapped(f"B  {b.path}")
    _wrapped(_winners(diff))
    _print_keys(diff.keys)
    told = [layout for layout in diff.layouts if layout.can_be_told]
    print()
    _wrapped(_layouts_found(diff, len(told)))
    if told:
        print(_head("by the brackets" if diff.seeks_capacity else "", "layout"))
    for layout in told[:_SHOWN_LAYOUTS]:
        _print_layout(layout)
    if len(told) > _SHOWN_LAYOUTS:
        print(f"and {len(told) - _SHOWN_LAYOUTS} more (--json has all)")
    for name, only in (("A", diff.only_a), ("B", diff.only_b)):
        if only:
            more = f" and {len(only) - _SHOWN_NAMES} more" if len(only) > _SHOWN_NAMES else ""
            _wrapped(f"only in {name}: {', '.join(only[:_SHOWN_NAMES])}{more}")


def _winners(diff: SweepDiff) -> str:
    a, b = diff.winners
    if a is None and b is None:
        return "neither recommends a layout"
    if a is None or b is None:
        which = ("B", b) if a is None else ("A", a)
        assert which[1] is not None
        return f"only {which[0]} recommends a layout: {_winner(which[1])}"
    if diff.same_winner:
        return f"the same winner: {_winner(a)}" + (f" -> {_rate(b)}" if _rate(b) else "")
    tie = ", which tie in both" if diff.is_tied else ""
    return f"another winner: {_winner(a)} -> {_winner(b)}{tie}"


def _winner(winner: Winner) -> str:
    rate = _rate(winner)
    return f"{winner.name} ({rate})" if rate else winner.name


def _rate(winner: Winner) -> str:
    rps = winner.report.get("capacity_rps")
    return "" if rps is None else f"{_number(rps)} req/s"


def _layouts_found(diff: SweepDiff, num_told: int) -> str:
    count = len(diff.layouts)
    if not count:
        return "no layout is in both: nothing to compare"
    if not num_told:
        return f"{count} layouts in both: no difference that can be told"
    return f"{count} layouts in both, {num_told} of them with a difference that can be told"


def _print_layout(layout: LayoutDiff) -> None:
    if layout.status[0] != layout.status[1]:
        _wrapped(f"{layout.name}: {layout.status[0]} -> {layout.status[1]}")
        return
    several = len(layout.changes) > 1
    if several:
        print(layout.name)
    for change in layout.changes:
        title = f"  {_TITLES.get(change.key, change.key)}" if several else layout.name
        print(_line(title if len(title) < 20 else f"{title[:16]}...", change))


def _wrapped(text: str, indent: str = "   ") -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False):
        print(line)
