"""Every recording judged: by worker processes, from what is kept, in the order of the plan."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dynosim.sweep.executor import Executor, LocalExecutor
from dynosim.sweep.status import FAILED
from dynosim.verify.plan import Plan
from dynosim.verify.verdict import RecordingVerdict
from dynosim.verify.work import FUNCTION, kept

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """All verdicts, and what there are none of."""

    verdicts: tuple[RecordingVerdict, ...]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "recordings": [verdict.to_dict() for verdict in self.verdicts],
            "unreadable": [{"file": file, "problem": why} for file, why in self.plan.unreadable],
            "untold": [
                {"recording": label, "level": level, "lacks": why}
                for label, level, why in self.plan.untold
            ],
            "passed_over": self.plan.passed_over,
        }


def verify(plan: Plan, *, jobs: int, progress: Progress) -> Verification:
    """Judge all pieces of the plan; `progress` is told how many are done, of how many, and which.

    What is finished is kept as it comes, so an interrupt loses only what is at work.
    """
    verdicts = {index: found for index, piece in enumerate(plan.pieces) if (found := kept(piece))}
    todo = [index for index in range(len(plan.pieces)) if index not in verdicts]
    if todo:
        progress(len(verdicts), len(plan.pieces), "")
        with LocalExecutor(min(jobs, len(todo))) as executor:
            _judge(plan, todo, executor, verdicts, progress)
    ordered = [verdicts[index] for index in range(len(plan.pieces))]
    return Verification(tuple(_with_causes(ordered)), plan)


def _judge(
    plan: Plan,
    todo: Sequence[int],
    executor: Executor,
    verdicts: dict[int, RecordingVerdict],
    progress: Progress,
) -> None:
    requests = [(index, asdict(plan.pieces[index])) for index in todo]
    for index, answer in executor.run(FUNCTION, requests):
        piece = plan.pieces[index]
        if answer.get("status") == FAILED:
            verdicts[index] = RecordingVerdict(
                recording=piece.label, kind=piece.kind, level=piece.level, problem=answer["reason"]
            )
        else:
            verdicts[index] = replace(RecordingVerdict.from_dict(answer), recording=piece.label)
        progress(len(verdicts), len(plan.pieces), f"{piece.label}, {piece.level}")


def _with_causes(verdicts: Sequence[RecordingVerdict]) -> list[RecordingVerdict]:
    """Blind verdicts with what the other levels say of the causes of their errors."""
    levels = {(one.recording, one.level): one for one in verdicts if not one.problem}
    found = []
    for verdict in verdicts:
        if verdict.level == "apriori" and verdict.figures:
            fitted = levels.get((verdict.recording, "fitted"))
            given = levels.get((verdict.recording, "capacity"))
            if fitted is not None and fitted.causes:
                verdict = replace(verdict, causes=fitted.causes)
            elif given is not None:
                errors = {"none": mean_error(verdict), "KV capacity": mean_error(given)}
                verdict = replace(verdict, causes=errors)
        found.append(verdict)
    return found


def mean_error(verdict: RecordingVerdict) -> float:
    """Mean absolute relative error of all its figures."""
    errors = [abs(one.error) for one in verdict.figures]
    return sum(errors) / len(errors)
