"""The log of a scenario: what each step served, what became of each request."""

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from itertools import pairwise

from dynosim.blocks.tier import Tier
from dynosim.conformance.drafts import draft_rows
from dynosim.conformance.log import Json, compact_steps, steps_digest
from dynosim.conformance.scenario import BlockTree
from dynosim.engine.core import EngineCore
from dynosim.engine.plan import DraftWork, HostWork, ScheduledRow, StepPlan
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import Sequence
from dynosim.engine.spec import EngineSpec

MODELLED_VLLM = "0.32.0"

_TOTALS = (
    "stored",
    "removed",
    "preemptions",
    "hit_tokens",
    "sched_tokens",
    "prefill_tokens",
    "decode_tokens",
)

_HOST_TOTALS = ("host_stored", "host_loaded", "host_evicted", "host_refused", "flushed")


@dataclass(slots=True)
class RequestNote:
    """What the log says of one request."""

    request_id: str
    arrival: int
    num_prompt: int
    order: int
    hit: int | None = None
    admitted: int | None = None
    preempted: int = 0
    external: int = 0
    drafts: int = 0
    accepted: int = 0
    cached: list[int] | None = None
    reason: str | None = None
    token_times: list[int] = field(default_factory=list)


@dataclass(slots=True)
class StepEntry:
    """A planned step on its way through the (imagined) GPU, and what the log will say of it."""

    plan: StepPlan
    record: Json
    scheduled_at: int
    start: int
    end: int

    @property
    def counts(self) -> bool:
        """Whether the log shows it."""
        record = self.record
        has_transfers = bool(record.get("kv", {}).keys() - {"rwait", "defer"})
        has_transfers |= bool(record.get("off", {}).keys() - {"wait", "host"})
        return bool(record["sched"] or record["pre"] or "abort" in record or has_transfers)

    def note_transfer(self, key: str, entry: object) -> None:
        """Enter what happened to a transfer."""
        self.record.setdefault("kv", {}).setdefault(key, []).append(entry)


class ScenarioLog(Recorder):
    """The `Recorder` of a scenario's engine. Times are integers, as in the golden files."""

    def __init__(self, scenario: Json, spec: EngineSpec, tree: BlockTree, *, has_time: bool):
        self.notes: dict[str, RequestNote] = {}
        self.steps: list[Json] = []
        self._scenario = scenario
        self._spec = spec
        self._tree = tree
        self._has_time = has_time
        self._shows_labels = (scenario.get("options") or {}).get("labels", True)
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._has_connector = spec.kv_role is not None or spec.host_cache is not None
        if self._has_connector:
            self._totals["ext_tokens"] = 0
        if spec.host_cache is not None:
            self._totals |= dict.fromkeys(_HOST_TOTALS, 0)
        if spec.speculation is not None:
            self._totals |= {"drafts": 0, "accepted": 0}

    # ---- what the engine reports --------------------------------------------------------------

    def admitted(self, sequences: List[Sequence], start_ms: float) -> None:
        """The rows of the plan tell."""

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """The rows of the plan tell."""

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """A step has yielded a token for everyone in it but those given up meanwhile."""
        if plan.drafts is not None:
            return  # how many is known when it is finished
        for sequence in plan.emitting:
            if self.notes[sequence.request_id].reason is None:
                self._note_tokens(sequence, 1, plan)

    def _note_tokens(self, sequence: Sequence, num_tokens: int, plan: StepPlan) -> None:
        note = self.notes[sequence.request_id]
        if note.cached is None:
            note.cached = [sequence.cached_tokens, sequence.external_tokens]
        note.token_times += [int(plan.end_ms)] * num_tokens

    def delivered_run(
        self, start_ms: float, end_ms: float, num_steps: int, first_context: int, num_waiting: int
    ) -> None:
        """Steps are logged one by one, so the engine makes no runs."""
        raise AssertionError("a run of steps in a scenario")

    def ended(self, sequences: List[Sequence], end_ms: float) -> None:
        """Requests are complete."""
        for sequence in sequences:
            self.notes[sequence.request_id].reason = "length"

    def wants_single_steps(self) -> bool:
        """There are no others."""
        return True

    # ---- what the driver reports --------------------------------------------------------------

    def planned(
        self,
        plan: StepPlan,
        core: EngineCore,
        now: int,
        start: int,
        *,
        was_loading: List[Sequence],
        is_loading: List[Sequence],
    ) -> StepEntry:
        """A scheduling decision, perhaps one that computes nothing; who loaded before and after."""
        for row in plan.rows:
            self._note_row(row, now)
        for sequence in plan.preempted:
            self.notes[sequence.request_id].preempted += 1
        self._totals["preemptions"] += len(plan.preempted)
        record: Json = {
            "sched": [
                [
                    row.sequence.request_id,
                    row.num_tokens,
                    "D" if row.is_decode else "P",
                    row.num_computed_before,
                    self._new_blocks(row, was_loading),
                    row.hit_tokens,
                ]
                for row in plan.rows
            ],
            "pre": [sequence.request_id for sequence in plan.preempted],
            "free": self._free_blocks(core),
            "run": core.num_running,
            "wait": core.num_waiting,
        }
        end = start if plan.is_empty else int(plan.end_ms)
        entry = StepEntry(plan, record, now, start, end)
        for load in plan.loads:
            request_id = load.sequence.request_id
            numbers = load.hit_tokens, load.num_tokens, load.num_new_blocks
            entry.note_transfer("load", [request_id, *numbers])
            self.notes[request_id].external += load.num_tokens
            self._totals["ext_tokens"] += load.num_tokens
        if is_loading:
            record.setdefault("kv", {})["rwait"] = len(is_loading)
        if plan.drafts is not None:
            record |= self._draft_work(plan.drafts)
        off = {} if plan.host is None else self._host_work(plan.host)
        if off:
            record["off"] = off
        return entry

    def _draft_work(self, work: DraftWork) -> Json:
        """What a step has to do with drafts; placeholders are none to be counted."""
        for sequence, num_drafts in work.scheduled.items():
            if sequence not in work.padded:
                num_accepted = work.accepted[sequence]
                note = self.notes[sequence.request_id]
                note.drafts += num_drafts
                note.accepted += num_accepted
                self._totals["drafts"] += num_drafts
                self._totals["accepted"] += num_accepted
        return draft_rows(work)

    def _host_work(self, work: HostWork) -> Json:
        """What a step has to do with the host tier."""
        labels, totals = self._tree.labels, self._totals
        off: Json = {}
        for name, jobs in (("store", work.stores), ("load", work.loads)):
            if jobs:
                off[name] = [
                    [job.number, job.sequence.request_id, len(job.spans)]
                    + ([] if job.is_load else [job.num_blocks])
                    for job in jobs
                ]
                off[f"{name}_l"] = [labels[span.content] for job in jobs for span in job.spans]
        if work.evicted:
            off["evict"] = len(work.evicted)
            off["evict_l"] = [labels[span.content] for span in work.evicted]
        for name, sequences in (("nospace", work.refused), ("wait", work.asked_later)):
            if sequences:
                off[name] = [sequence.request_id for sequence in sequences]
        if work.flushed:
            off["flush"] = sorted(work.flushed)
        totals["host_stored"] += sum(len(job.spans) for job in work.stores)
        totals["host_loaded"] += sum(len(job.spans) for job in work.loads)
        totals["host_evicted"] += len(work.evicted)
        totals["host_refused"] += len(work.refused)
        totals["flushed"] += len(work.flushed)
        if self._shows_labels:
            return off
        return {name: value for name, value in off.items() if not name.endswith("_l")}

    def _new_blocks(self, row: ScheduledRow, was_loading: List[Sequence]) -> int:
        """Blocks that a step added. Of a request that has loaded, but became ready in an earlier
        step or must compute all, the log counts all blocks that its hit does not fill."""
        sequence, size = row.sequence, self._spec.block_size
        if row.hit_tokens < 0 or sequence.reserved_tokens == 0:
            return row.num_new_blocks
        if row.hit_tokens > 0 and sequence in was_loading:
            return row.num_new_blocks
        end = max(row.num_computed_before + row.num_tokens, sequence.reserved_tokens)
        return -(-end // size) - row.hit_tokens // size

    def failed(self, entry: StepEntry, sequence: Sequence) -> None:
        """A request has ended with an error."""
        self.notes[sequence.request_id].reason = "error"
        entry.note_transfer("err", sequence.request_id)

    def finished(self, entry: StepEntry, sequences: List[Sequence], core: EngineCore) -> None:
        """A step is over, with it these requests."""
        work = entry.plan.drafts
        if work is not None:
            for sequence, num_tokens in work.delivered.items():
                self._note_tokens(sequence, num_tokens, entry.plan)
            came = {sequence.request_id: number for sequence, number in work.delivered.items()}
            for row in entry.record.get("spec", ()):
                row[3] = came.get(row[0], 0)
        if entry.record.get("off", {}).keys() & {"store", "evict"}:
            entry.record["off"]["host"] = core.num_host_chunks
        errors = entry.record.get("kv", {}).get("err", [])
        entry.record["fin"] = [sequence.request_id for sequence in sequences] + errors
        if core.deferred_blocks:
            entry.record.setdefault("kv", {})["defer"] = core.deferred_blocks
        entry.record["free_end"] = self._free_blocks(core)
        if not entry.counts:
            return
        self.collect_events(core, entry.record)
        if not self._has_time:
            head: Json = {"step": entry.scheduled_at}
        else:
            head = {"step": len(self.steps)}
            if entry.scheduled_at != entry.start:
                head["ts"] = entry.scheduled_at
            head |= {"t0": entry.start, "t1": entry.end}
        self.steps.append(head | entry.record)

    def collect_events(self, core: EngineCore, record: Json) -> None:
        """Enter the KV events since the last step."""
        stored: list[str] = []
        removed: list[str] = []
        for event in core.take_events():
            if event.tier is not Tier.DEVICE:
                continue  # copies are told in `off`
            labels = stored if event.is_stored else removed
            labels.extend([self._tree.labels[event.content]] * event.num_blocks)
        self._totals["stored"] += len(stored)
        self._totals["removed"] += len(removed)
        record["st"], record["rm"] = len(stored), len(removed)
        if self._shows_labels:
            record["st_l"], record["rm_l"] = stored, removed

    def result(self, core: EngineCore, *, end: int, is_stuck: bool) -> Json:
        """The whole log, in the golden files' format."""
        result: Json = {
            "name": self._scenario.get("name"),
            "vllm": MODELLED_VLLM,
            "scheduler": "AsyncScheduler" if self._spec.async_scheduling else "Scheduler",
            "clock": "ns" if self._has_time else "step",
            "usable_blocks": self._spec.usable_blocks,
            "stuck": is_stuck,
            "num_steps": len(self.steps),
            "end": end,
            "totals": self._totals,
            "free_at_end": self._free_blocks(core),
            "steps_sha256": steps_digest(self.steps),
            "requests": [
                self._request_row(note, is_stuck)
                for note in sorted(self.notes.values(), key=lambda note: note.order)
            ],
        }
        step_log = (self._scenario.get("options") or {}).get("step_log", "full")
        if step_log == "full":
            result["steps"] = self.steps
        elif step_log == "compact":
            result["steps_rle"] = compact_steps(self.steps)
        return result

    def _note_row(self, row: ScheduledRow, now: int) -> None:
        note = self.notes[row.sequence.request_id]
        if row.hit_tokens >= 0 and note.hit is None:
            note.hit = row.hit_tokens
            note.admitted = now
            self._totals["hit_tokens"] += row.hit_tokens
        self._totals["decode_tokens" if row.is_decode else "prefill_tokens"] += row.num_tokens
        self._totals["sched_tokens"] += row.num_tokens

    def _free_blocks(self, core: EngineCore) -> int:
        return self._spec.usable_blocks - core.used_blocks

    def _request_row(self, note: RequestNote, is_stuck: bool) -> Json:
        times = note.token_times
        row: Json = {
            "id": note.request_id,
            "arrival": note.arrival,
            "prompt": note.num_prompt,
            "out": len(times),
            "hit": note.hit,
            "preempted": note.preempted,
            "status": note.reason or ("stuck" if is_stuck else "?"),
            "admit": note.admitted,
            "first": times[0] if times else None,
            "last": times[-1] if note.reason == "length" or times else None,
        }
        if self._has_connector and note.reason != "rejected":
            row |= {"ext": note.external, "cached": note.cached}
        if self._spec.speculation is not None and note.reason != "rejected":
            row |= {"drafts": note.drafts, "accepted": note.accepted}
        if self._has_time and times:
            row["ttft"] = times[0] - note.arrival
            row["e2e"] = times[-1] - note.arrival
            row["max_itl"] = max((b - a for a, b in pairwise(times)), default=0)
        return row
