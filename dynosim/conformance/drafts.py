"""The drafts of a scenario: how many are offered to a request, and how many are accepted.

Each request has a list of either; its entries count for one step after the other, and the list
begins anew at its end. Placeholders are always rejected, and use no entry.
"""

from dynosim.conformance.log import Json
from dynosim.engine.plan import DraftWork, StepPlan
from dynosim.engine.sequence import Sequence
from dynosim.timing.formulas import LinearModel
from dynosim.timing.step import StepShape


class DraftingModel(LinearModel):
    """The linear model, and besides so much for each draft of a request that decodes."""

    def __init__(self, *, per_draft_ms: float, **linear: float) -> None:
        super().__init__(**linear)
        self._per_draft_ms = float(per_draft_ms)

    def step_ms(self, step: StepShape) -> float:
        """See `StepTimeModel`."""
        num_drafts = 0
        if isinstance(step, StepPlan) and step.drafts is not None:
            scheduled = step.drafts.scheduled
            num_drafts = sum([scheduled.get(r.sequence, 0) for r in step.rows if r.is_decode])
        return super().step_ms(step) + self._per_draft_ms * num_drafts


class ScenarioDrafts:
    """What becomes of the drafts of an engine whose section `spec` this is, if it has one."""

    def __init__(self, section: Json | None, requests: list[Json]) -> None:
        spec = section or {"k": 0}
        self._numbers = {
            kind: {
                str(request["id"]): request.get(kind) or spec.get(kind) or [spec["k"]]
                for request in requests
            }
            for kind in ("accept", "drafts")
        }
        self._num_used: dict[tuple[str, str], int] = {}

    def decide(self, plan: StepPlan) -> None:
        """Say what will come of a step that has just been planned."""
        work = plan.drafts
        if work is None:
            return
        for sequence, num_drafts in work.scheduled.items():
            if sequence not in work.padded:
                work.accepted[sequence] = min(self._next("accept", sequence), num_drafts)
        for sequence in plan.emitting:
            work.offered[sequence] = self._next("drafts", sequence)

    def _next(self, kind: str, sequence: Sequence) -> int:
        key = kind, sequence.request_id
        used = self._num_used.get(key, 0)
        self._num_used[key] = used + 1
        numbers = self._numbers[kind][sequence.request_id]
        return int(numbers[used % len(numbers)])


def draft_rows(work: DraftWork) -> Json:
    """What a step's record says of its drafts: request, drafts, of them accepted, and tokens that
    came of them, none yet."""
    rows = [
        [sequence.request_id, num_drafts, work.accepted.get(sequence, 0), 0]
        for sequence, num_drafts in work.scheduled.items()
    ]
    record: Json = {"spec": rows} if rows else {}
    if work.padded:
        record["pad"] = [sequence.request_id for sequence in work.padded]
    return record
