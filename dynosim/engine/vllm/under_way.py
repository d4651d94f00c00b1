"""Steps under way where KV is exchanged: what they still write must not go astray.

With asynchronous scheduling a request may lose its seat while a step under way computes its next
token. An engine that takes KV from elsewhere must not give such a request's blocks to a load yet,
for nothing orders the two writers; and one that gives KV must compute the token again, since the
blocks to be handed over are gone.
"""

from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import Sequence


class StepsUnderWay:
    """The steps planned and not delivered yet, of an engine with asynchronous scheduling.

    `defers_frees`: blocks that a step under way writes are freed when it has ended. `drops_tokens`:
    a request that is preempted loses the tokens under way.
    """

    __slots__ = ("_deferred", "_plans", "defers_frees", "drops_tokens")

    def __init__(self, *, defers_frees: bool, drops_tokens: bool) -> None:
        self.defers_frees = defers_frees
        self.drops_tokens = drops_tokens
        self._plans: list[StepPlan] = []
        self._deferred: list[tuple[StepPlan, Sequence]] = []  # freed once the step has ended

    def begin(self, plan: StepPlan) -> None:
        """A step that computes something has been planned."""
        self._plans.append(plan)

    def replace(self, plan: StepPlan) -> None:
        """A run has been done: of its steps only the last is under way."""
        self._plans = [plan]

    def end(self, plan: StepPlan) -> list[Sequence]:
        """A step has ended; returns the requests whose blocks are free now, in order."""
        if plan in self._plans:  # it computed something
            self._plans.remove(plan)
        if not self._deferred:
            return []
        free = [sequence for fence, sequence in self._deferred if fence is plan]
        self._deferred = [entry for entry in self._deferred if entry[0] is not plan]
        return free

    def writes(self, sequence: Sequence) -> bool:
        """Whether a request's blocks must not be freed yet."""
        if not self.defers_frees:
            return False
        for plan in self._plans:
            if sequence.last_chunk_step == plan.step or sequence in plan.emitting:
                return True
        return False

    def defer(self, sequence: Sequence) -> None:
        """Keep a request's blocks until the last step planned so far has ended."""
        self._deferred.append((self._plans[-1], sequence))

    def deferred(self) -> list[Sequence]:
        """The requests whose blocks are kept."""
        return [sequence for _, sequence in self._deferred]

    def withdraw(self, sequence: Sequence) -> None:
        """What is under way for a preempted request is for nobody."""
        for plan in self._plans:
            for yielding in (plan.emitting, plan.prefilled):
                if sequence in yielding:
                    yielding.remove(sequence)
        sequence.in_flight = 0
