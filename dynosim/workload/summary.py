"""The statistics of a trace as lines of text for a terminal."""

from collections.abc import Mapping
from typing import Any

_LENGTH_COLUMNS = ("mean", "std", "min", "p10", "p50", "p90", "p99", "max")


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Lines that show what `inspect_trace` found."""
    rate, spread = summary["request_rate_rps"], summary["interarrival_cv"]
    pace = "all at once" if rate is None else f"{rate:.3f} requests/s, gaps vary by {spread:.2f}"
    lines = [
        f"{summary.get('target', summary['source'])}",
        f"requests        {summary['requests']:,} in {summary['duration_s']:,.1f} s ({pace})",
        _session_line(summary["sessions"]),
        *_graph_lines(summary),
        "                " + "".join(f"{name:>9}" for name in _LENGTH_COLUMNS),
        _length_line("input tokens", summary["input_tokens"]),
        _length_line("output tokens", summary["output_tokens"]),
        *_reuse_lines(summary["reuse"]),
    ]
    if summary.get("wishes"):
        lines.append(_wish_line(summary["wishes"]))
    if summary.get("retention"):
        said = summary["retention"]
        lines.append(
            f"block worth     {said['requests']:,} requests: {said['ranges']:,} give priorities, "
            f"{said['pinned']:,} pin, {said['ephemeral']:,} are ephemeral"
        )
    lines += repair_lines(summary)
    if summary.get("plot"):
        lines.append(f"drawn           {summary['plot']}")
    return lines


def repair_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was left out, assumed and moved when the trace was read."""
    lines = []
    if summary["skipped_lines"]:
        lines.append(f"left out        {summary['skipped_lines']:,} bad lines")
    if summary.get("assumed_lengths"):
        lines.append(f"assumed         {summary['assumed_lengths']:,} prompts as long as their ids")
    if summary.get("moved_rows"):
        lines.append(f"sorted          {summary['moved_rows']:,} rows came after a later arrival")
    return lines


def _session_line(sessions: dict[str, Any]) -> str:
    if not sessions["multi_turn"]:
        return "sessions        none: no request waits for another"
    think = sessions["delay_ms"]["mean"] / 1000.0
    return (
        f"sessions        {sessions['count']:,}, {sessions['multi_turn']:,} of more than one turn; "
        f"{sessions['turns_mean']:.2f} turns on average, {sessions['turns_max']} at most; "
        f"{think:.1f} s before a later turn"
    )


def _graph_lines(summary: dict[str, Any]) -> list[str]:
    lines, graph, classes = [], summary.get("graph"), summary.get("classes")
    if graph is not None:
        lines.append(
            f"graph           {graph['waiting_requests']:,} requests wait for "
            f"{graph['dependencies']:,} others, {graph['joins']:,} of them for several; "
            f"{graph['tree_requests_max']:,} requests in the largest tree"
        )
    if classes:
        shown = ", ".join(f"{count:,} {name}" for name, count in classes.items())
        lines.append(f"classes         {shown}")
    return lines


def _wish_line(wishes: dict[str, Any]) -> str:
    parts = [f"{wishes['worker_id']:,} name it"] if wishes["worker_id"] else []
    for key, what in (
        ("required_taints", "require"),
        ("preferred_taints", "prefer or shun"),
        ("router_config_override", "override"),
    ):
        parts += [f"{count:,} {what} {name}" for name, count in wishes[key].items()]
    return f"worker wishes   {wishes['requests']:,} requests: {', '.join(parts)}"


def _length_line(title: str, lengths: dict[str, float]) -> str:
    return f"{title:<16}" + "".join(f"{lengths[name]:>9,.0f}" for name in _LENGTH_COLUMNS)


def _reuse_lines(reuse: dict[str, Any]) -> list[str]:
    if not reuse["known"]:
        return ["prefix reuse    unknown: the trace has no hash ids"]
    lines = [
        f"prefix reuse    {reuse['block_reuse']:.1%} of {reuse['blocks']:,} blocks of "
        f"{reuse['trace_block_size']} tokens, {reuse['token_reuse']:.1%} of the prompt tokens "
        "(endless cache)"
    ]
    if "engine_reuse" in reuse:
        lines.append(
            f"                {reuse['engine_reuse']:.1%} of the prompt tokens for an engine with "
            f"blocks of {reuse['block_size']} tokens"
        )
    return lines
