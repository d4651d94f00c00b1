"""Why a request waited, on a terminal of 80 columns."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynosim.metrics.story import Happening
from dynosim.metrics.wait_words import Name, duration
from dynosim.metrics.waits import Wait

WIDTH = 80
_CANDIDATES = 8
_AHEAD = 3
_CHUNKS = 8
_STRETCHES = 8
_INDENT = 12  # what a time takes
_TITLES = ("worker", "cost", "cached", "to prefill", "KV blocks", "requests")
_WIDTHS = (9, 9, 8, 11, 10, 9)  # of the columns that tell of candidates


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of one request; `name` gives the ids of others by their index."""

    request_id: str
    sentence: str
    choice: str  # why its worker was chosen
    wait: Wait | None  # None: it has no first token
    story: Sequence[Happening]
    name: Name

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with requests by their ids."""
        parts: dict[str, Any] = {}
        if self.wait is not None:
            parts = asdict(self.wait) | {"queue_ms": self.wait.queue_ms}
            parts["ahead"] = [self._named(one._asdict()) for one in self.wait.ahead]
            del parts["request"]
        timeline = [happening.to_dict() for happening in self.story]
        for happening in timeline:
            if "ahead" in happening:
                happening["ahead"] = [self._named(one) for one in happening["ahead"]]
        return {
            "request_id": self.request_id,
            "sentence": self.sentence,
            "choice": self.choice,
            **parts,
            "timeline": timeline,
        }

    def _named(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "request": self.name(one["request"])}


def print_story(told: Told, *, is_brief: bool, is_first: bool) -> None:
    """The sentence, and unless in brief the request's life below it."""
    if not is_first and not is_brief:
        print()
    _print_wrapped(f"request {told.request_id}: {told.sentence}", "")
    if is_brief or not told.story:
        return
    print()
    start_ms = told.story[0].at_ms
    print(f"{'0 s':>{_INDENT - 2}}  arrived at {start_ms / 1000:,.3f} s of the run")
    for at_ms, text in _lines(told):
        _print_wrapped(f"{(at_ms - start_ms) / 1000:>{_INDENT - 4}.3f} s  {text}", " " * _INDENT)
        if text.startswith("routed"):
            for line in _candidates(told.story):
                print(line)


def _print_wrapped(text: str, indent: str) -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent=indent or "  "):
        print(line)


def _lines(told: Told) -> list[tuple[float, str]]:
    """The happenings after the arrival: chunks and stretches in a row are told together."""
    lines: list[tuple[float, str]] = []
    story = told.story[1:]
    place = 0
    while place < len(story):
        kind = story[place].kind
        end = place + 1
        while kind in ("prefilled", "decoded") and end < len(story) and story[end].kind == kind:
            end += 1
        lines += _RENDER[kind](told, story[place:end])
        place = end
    return lines


def _routed(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    (routed,) = part
    waited = duration(routed.until_ms - routed.at_ms)
    after = f" after {waited}" if routed.until_ms > routed.at_ms else ""
    return [
        (routed.until_ms, f"routed to worker {routed.facts['worker_id']}{after}: {told.choice}")
    ]


def _candidates(story: Sequence[Happening]) -> list[str]:
    """What the router weighed: the chosen worker first, then the cheapest."""
    routed = next(happening for happening in story if happening.kind == "routed")
    rows = routed.facts.get("candidates", [])
    if len(rows) < 2:
        return []
    chosen = routed.facts["worker_id"]
    ordered = sorted(rows, key=lambda row: (row["worker_id"] != chosen, row["cost_blocks"]))
    titles = zip(_TITLES, _WIDTHS, strict=True)
    lines = [" ".join(f"{title:>{width}}" for title, width in titles)]
    for row in ordered[:_CANDIDATES]:
        mark = "*" if row["worker_id"] == chosen else " "
        lines.append(
            f"{mark}{row['worker_id']:>8} {row['cost_blocks']:>9,.0f} {row['cached_tokens']:>8,} "
            f"{row['prefill_tokens']:>11,} {row['decode_blocks']:>10,} {row['requests']:>9,}"
        )
    if len(ordered) > _CANDIDATES:
        lines.append(f"{'':>9} and {len(ordered) - _CANDIDATES} more")
    return [" " * (_INDENT - 2) + line for line in lines]


def _waited(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    (waited,) = part
    took_ms = waited.until_ms - waited.at_ms
    where = f"in the queue of worker {waited.facts['worker_id']}"
    if took_ms <= 0:
        return [(waited.at_ms, f"no wait {where}")]
    text = f"waited {duration(took_ms)} {where}"
    facts = waited.facts
    if "ahead" not in facts:
        return [(waited.at_ms, f"{text} for another seat")]
    reasons = []
    ahead = facts["ahead"]
    if ahead:
        named = ", ".join(
            f"{told.name(one['request'])} ({one['num_tokens']:,} tokens in "
            f"{duration(one['during_ms'])})"
            for one in ahead[:_AHEAD]
        )
        more = f" and {len(ahead) - _AHEAD} more" if len(ahead) > _AHEAD else ""
        reasons.append(f"{duration(facts['behind_prefill_ms'])} behind prefills of {named}{more}")
    if facts["seat_ms"] > 0:
        reasons.append(f"{duration(facts['seat_ms'])} for a seat")
    if facts["blocks_ms"] > 0:
        reasons.append(f"{duration(facts['blocks_ms'])} for KV blocks")
    if facts["step_ms"] > 0:
        reasons.append(f"{duration(facts['step_ms'])} for the end of a step")
    return [(waited.at_ms, f"{text}: {'; '.join(reasons)}")]


def _prefilled(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    first = part[0]
    if len(part) > _CHUNKS:
        total = sum(chunk.facts["num_tokens"] for chunk in part)
        took = duration(part[-1].until_ms - first.at_ms)
        largest = max(chunk.facts["num_tokens"] for chunk in part)
        text = f"prefill of {total:,} tokens in {len(part)} steps, {took}, up to {largest:,} each"
        return [(first.at_ms, text + _before(first))]
    return [
        (
            chunk.at_ms,
            f"prefill of {chunk.facts['num_tokens']:,} tokens, "
            f"{duration(chunk.until_ms - chunk.at_ms)}" + (_before(chunk) if not place else ""),
        )
        for place, chunk in enumerate(part)
    ]


def _before(chunk: Happening) -> str:
    cached = chunk.facts["computed_before"]
    return f"; {cached:,} were cached" if cached else ""


def _handed_over(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    (one,) = part
    facts = one.facts
    held = f"; {facts['held_tokens']:,} tokens were there" if facts["held_tokens"] else ""
    room = f", {duration(facts['room_ms'])} after its prefill" if facts["room_ms"] > 0 else ""
    text = (
        f"KV of {facts['bytes'] / 1e9:,.3g} GB to worker {facts['worker_id']} in "
        f"{duration(one.until_ms - one.at_ms)}{room}{held}"
    )
    return [(one.at_ms, text)]


def _onboarded(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    (one,) = part
    beyond = one.facts["beyond_tokens"]
    further = f", {beyond:,} of them from beyond the nearest tier" if beyond else ""
    took = duration(one.until_ms - one.at_ms)
    text = f"{one.facts['num_tokens']:,} prompt tokens loaded from slower memory in {took}"
    return [(one.at_ms, text + further)]


def _preempted(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    return [(part[0].at_ms, f"preempted: worker {part[0].facts['worker_id']} ran out of KV blocks")]


def _first_token(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    return [(part[0].at_ms, "first token")]


def _decoded(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    """Stretches one by one, or what they add up to and the longest interruptions."""
    if len(part) <= _STRETCHES:
        return [(stretch.at_ms, _stretch(stretch)) for stretch in part]
    mixed = [stretch for stretch in part if stretch.facts["others_prefill_tokens"]]
    plain = [stretch for stretch in part if not stretch.facts["others_prefill_tokens"]]
    batches = [stretch.facts for stretch in part]
    low = min(facts["batch_min"] for facts in batches)
    high = max(facts["batch_max"] for facts in batches)
    text = (
        f"decode: {_steps(plain)} alone took {_took(plain)}, {_steps(mixed)} beside prompts of "
        f"others {_took(mixed)}; batch {_range(low, high)}"
    )
    longest = sorted(mixed, key=lambda one: one.at_ms - one.until_ms)[:3]
    lines = [(part[0].at_ms, text)]
    lines += [
        (one.at_ms, f"slowest: {_stretch(one)}")
        for one in sorted(longest, key=lambda one: one.at_ms)
    ]
    return lines


def _steps(part: Sequence[Happening]) -> str:
    count = sum(stretch.facts["num_steps"] for stretch in part)
    return "1 step" if count == 1 else f"{count:,} steps"


def _took(part: Sequence[Happening]) -> str:
    return duration(sum(stretch.until_ms - stretch.at_ms for stretch in part))


def _stretch(stretch: Happening) -> str:
    facts = stretch.facts
    batch = _range(facts["batch_min"], facts["batch_max"])
    text = f"decode: {_steps([stretch])} in {_took([stretch])}, batch {batch}"
    if facts["others_prefill_tokens"]:
        text += f", beside {facts['others_prefill_tokens']:,} prompt tokens of others"
    return text


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _ended(told: Told, part: Sequence[Happening]) -> list[tuple[float, str]]:
    facts = part[0].facts
    error = f": {facts['error']}" if "error" in facts else ""
    return [(part[0].at_ms, f"{facts['status']}, {facts['output_tokens']:,} tokens{error}")]


_RENDER: dict[str, Callable[[Told, Sequence[Happening]], list[tuple[float, str]]]] = {
    "routed": _routed,
    "waited": _waited,
    "prefilled": _prefilled,
    "preempted": _preempted,
    "handed_over": _handed_over,
    "onboarded": _onboarded,
    "first_token": _first_token,
    "decoded": _decoded,
    "ended": _ended,
}
