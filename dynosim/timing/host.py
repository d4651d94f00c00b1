"""What the host adds to the device's time of a step, and how much of it the device hides.

For each step the host schedules, prepares inputs, launches, samples and updates: a base, and
something for each sequence and each prompt. A share of that work is exposed, nothing runs on the
device meanwhile; the rest, and launching kernels one by one where no CUDA graph holds them, goes on
while the device computes:

    step = max(device, hidden work + launching) + exposed work

With synchronous scheduling all of the work is exposed and a step takes both, one after the other;
with asynchronous scheduling the host prepares a step while the one before it runs, and a long step
hides all but the share that needs the tokens of the step before.
"""

from math import ceil

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)  # hence can be copied
class HostTime:
    """The host's part in the steps of one engine; all zero: the device's time alone."""

    __slots__ = (
        "base_ms",
        "exposed_share",
        "interval",
        "launch_ms",
        "launches_decodes",
        "per_prompt_ms",
        "per_sequence_ms",
    )

    def __init__(
        self,
        *,
        base_ms: float = 0.0,
        per_sequence_ms: float = 0.0,
        per_prompt_ms: float = 0.0,
        exposed_share: float = 1.0,
        launch_ms: float = 0.0,
        launches_decodes: bool = False,
        interval: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """`launch_ms` is for steps with prompts, and with `launches_decodes` for all of them.

        `interval`: by what factors the whole may be off; 95 % of hosts lie within.
        """
        self.base_ms = base_ms
        self.per_sequence_ms = per_sequence_ms
        self.per_prompt_ms = per_prompt_ms
        self.exposed_share = exposed_share
        self.launch_ms = launch_ms
        self.launches_decodes = launches_decodes
        self.interval = interval

    def exposed_ms(self, num_prefills: int, num_decodes: int) -> float:
        """What a step of these prompts and decodes takes beyond anything that could hide it."""
        return self.exposed_share * self._work_ms(num_prefills, num_decodes)

    def hidden_ms(self, num_prefills: int, num_decodes: int) -> float:
        """What the device hides of it, if it takes as long."""
        hidden = (1.0 - self.exposed_share) * self._work_ms(num_prefills, num_decodes)
        if num_prefills > 0 or self.launches_decodes:
            hidden += self.launch_ms
        return hidden

    def step_ms(self, device_ms: float, num_prefills: int, num_decodes: int) -> float:
        """The whole step, of which the device takes `device_ms`."""
        work = self._work_ms(num_prefills, num_decodes)
        exposed = self.exposed_share * work
        hidden = (1.0 - self.exposed_share) * work
        if num_prefills > 0 or self.launches_decodes:
            hidden += self.launch_ms
        return (device_ms if device_ms > hidden else hidden) + exposed

    def run_ms(self, first_ms: float, growth_ms: float, num_steps: int, num_decodes: int) -> float:
        """Sum of `num_steps` decode steps of a batch, whose device times rise by `growth_ms` >= 0
        from `first_ms`."""
        hidden = self.hidden_ms(0, num_decodes)
        below = self.steps_below(first_ms, growth_ms, num_steps, hidden)
        above = num_steps - below
        start_ms = first_ms + below * growth_ms
        return (
            num_steps * self.exposed_ms(0, num_decodes)
            + below * hidden
            + above * start_ms
            + growth_ms * (above * (above - 1) // 2)
        )

    def steps_below(
        self, first_ms: float, growth_ms: float, num_steps: int, hidden_ms: float
    ) -> int:
        """How many of these steps the device ends before the host's hidden work."""
        if first_ms >= hidden_ms:
            return 0
        if first_ms + growth_ms * (num_steps - 1) < hidden_ms:
            return num_steps
        return ceil((hidden_ms - first_ms) / growth_ms)

    def scaled(self, factor: float) -> "HostTime":
        """The same on a host that takes so many times as long."""
        return HostTime(
            base_ms=factor * self.base_ms,
            per_sequence_ms=factor * self.per_sequence_ms,
            per_prompt_ms=factor * self.per_prompt_ms,
            exposed_share=self.exposed_share,
            launch_ms=factor * self.launch_ms,
            launches_decodes=self.launches_decodes,
            interval=self.interval,
        )

    def _work_ms(self, num_prefills: int, num_decodes: int) -> float:
        num_sequences = num_prefills + num_decodes
        return (
            self.base_ms + self.per_sequence_ms * num_sequences + self.per_prompt_ms * num_prefills
        )
