"""Why a request waited, in words."""

from collections.abc import Callable, Sequence

from dynosim.metrics.waits import Wait

Name = Callable[[int], str]
"""The id of the request of an index."""

_SHARE_TOLD = 0.1  # of the time to the first token; smaller parts are left out
_MOST = 0.6  # of the tokens ahead: one prompt alone is to blame
_NAMED_WORKERS = 4


def sentence(wait: Wait, name: Name, *, choice: str = "") -> str:
    """One sentence: how long to the first token, and what made it so.

    `choice` says why the worker was chosen.
    """
    causes = "; ".join([", ".join(_causes(wait, name)), *_aside(wait, choice)])
    return f"{duration(wait.ttft_ms)} to first token: {causes}"


def reason(wait: Wait, name: Name) -> str:
    """The causes alone."""
    return "; ".join([", ".join(_causes(wait, name)), *_aside(wait, "")])


def _causes(wait: Wait, name: Name) -> list[str]:
    """Largest first; those that matter little are left out."""
    where = f"on worker {wait.worker_id}"
    parts = [
        (wait.router_ms, "in the router's queue"),
        (wait.behind_prefill_ms, f"{_behind(wait, name)} {where}"),
        (wait.seat_ms, f"for a seat {where}"),
        (wait.blocks_ms, f"for KV blocks {where}"),
        (wait.step_ms, f"for the end of a step {where}"),
        (wait.prefill_ms, f"computing its own {tokens(wait.prefill_tokens)} tokens"),
        (wait.handoff_ms, f"handing its KV over to worker {wait.decode_worker_id}"),
        (wait.outside_ms, "on the way to the engine"),
    ]
    told = sorted((part for part in parts if part[0] > 0), key=lambda part: -part[0])
    least_ms = _SHARE_TOLD * wait.ttft_ms
    kept = [part for part in told if part[0] >= least_ms] or told[:1]
    return [f"{duration(part_ms)} {what}" for part_ms, what in kept]


def _behind(wait: Wait, name: Name) -> str:
    ahead = wait.ahead
    if not ahead:
        return "behind other prompts"
    largest = ahead[0]
    whole = f"request {name(largest.request)}'s {tokens(largest.num_tokens)}-token prefill"
    if len(ahead) == 1 or largest.num_tokens >= _MOST * sum(one.num_tokens for one in ahead):
        return f"behind {whole}"
    total = tokens(sum(one.num_tokens for one in ahead))
    return (
        f"behind {len(ahead)} prefills of {total} tokens (the largest request "
        f"{name(largest.request)}'s {tokens(largest.num_tokens)})"
    )


def _aside(wait: Wait, choice: str) -> list[str]:
    """Who could have served it at once, and why it was sent where it waited."""
    waited = wait.queue_ms >= _SHARE_TOLD * wait.ttft_ms
    others = [worker for worker in wait.idle_workers if worker != wait.worker_id]
    said = []
    if waited and others:
        said.append(f"{_workers(others)} idle")
    in_router = wait.router_ms >= _SHARE_TOLD * wait.ttft_ms  # then any worker would have done
    if choice and (waited or not in_router):
        said.append(choice)
    return [", ".join(said)] if said else []


def _workers(idle: Sequence[int]) -> str:
    named = ", ".join(map(str, idle[:_NAMED_WORKERS]))
    if len(idle) == 1:
        return f"worker {named} was"
    if len(idle) <= _NAMED_WORKERS:
        return f"workers {named} were"
    return f"workers {named} and {len(idle) - _NAMED_WORKERS} more were"


def duration(of_ms: float) -> str:
    """A time for people: seconds from one on, else milliseconds."""
    if of_ms >= 100_000:
        return f"{of_ms / 1e3:,.0f} s"
    if of_ms >= 1000:
        return f"{of_ms / 1e3:.1f} s"
    return f"{of_ms:.0f} ms" if of_ms >= 10 else f"{of_ms:.2g} ms"


def tokens(count: int) -> str:
    """A number of tokens for people."""
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count:,}"
