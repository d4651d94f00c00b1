"""The KV transfers of a scenario: how long each takes, and what comes of it.

A load begins when the step executes whose planning took its blocks, the sending of a request's
blocks when it ends. The end is reported with the first step that ends then or later and that was
planned no earlier than the one that began it. Whatever role an engine has, both can happen.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dynosim.conformance.log import Json
from dynosim.engine.sequence import LOADING, Sequence


@dataclass(slots=True)
class ScenarioTransfer:
    """One under way; `call`: the first step that can report its end."""

    sequence: Sequence
    is_load: bool
    call: int
    end: int
    hit_tokens: int = 0


class ScenarioTransfers:
    """Those under way, and who waits for one."""

    def __init__(
        self, requests: list[Json], block_size: int, to_clock: Callable[[object], int]
    ) -> None:
        self._remote: dict[str, Json] = {
            str(request["id"]): request.get("remote") or {} for request in requests
        }
        self._block_size = block_size
        self._to_clock = to_clock
        self._under_way: list[ScenarioTransfer] = []
        self._loading: list[Sequence] = []

    def tell(self, sequence: Sequence) -> None:
        """Say to a request what its scenario wants of it."""
        remote = self._remote[sequence.request_id]
        if remote.get("recv"):
            tokens = remote.get("tokens", sequence.prompt_tokens)
            sequence.remote_tokens = min(tokens, sequence.prompt_tokens)
        sequence.is_sent = bool(remote.get("send"))

    def start(
        self, sequence: Sequence, *, is_load: bool, call: int, now: int, hit_tokens: int = 0
    ) -> None:
        """A load or the sending of a request's blocks begins."""
        end = now + self._to_clock(self._remote[sequence.request_id].get("delay", 0))
        self._under_way.append(ScenarioTransfer(sequence, is_load, call, end, hit_tokens))
        if is_load:
            self._loading.append(sequence)

    def note_loading(self, sequences: list[Sequence]) -> None:
        """Loads that somebody else times have begun."""
        self._loading += sequences

    def take_ended(self, call: int, now: int) -> list[ScenarioTransfer]:
        """What a step reports: loads first, each kind in the order of their ends."""
        ended = [one for one in self._under_way if one.call <= call and one.end <= now]
        self._under_way = [one for one in self._under_way if one not in ended]
        return sorted(ended, key=lambda one: (not one.is_load, one.end))

    def loading(self) -> list[Sequence]:
        """Who waits for a load, or for the first admissions after it."""
        self._loading = [sequence for sequence in self._loading if sequence.state == LOADING]
        return self._loading.copy()

    def fails(self, load: ScenarioTransfer) -> bool:
        """Whether some of what it brings is invalid."""
        return self._remote[load.sequence.request_id].get("fail") is not None

    def valid_tokens(self, load: ScenarioTransfer) -> int:
        """Tokens of its request that are valid from the start, once it has ended."""
        fail = self._remote[load.sequence.request_id].get("fail")
        if fail is None:
            return load.sequence.reserved_tokens
        return load.hit_tokens if fail == "all" else int(fail) * self._block_size

    def next_end(self) -> int | None:
        """When the next one ends, if any is under way."""
        return min([one.end for one in self._under_way], default=None)
