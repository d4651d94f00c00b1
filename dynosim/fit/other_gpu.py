"""Whether a log was recorded on the GPU that it is said to be: its step times against a table's.

Nothing is replayed or fitted: how many sequences decoded beside a request, and the prompts computed
meanwhile, follow from the log's own times, and so does what its decode should have taken.
"""

from dataclasses import dataclass
from math import log

import numpy as np

from dynosim.fit.deployment import Deployment
from dynosim.fit.measurements import Measurements
from dynosim.records import FloatArray
from dynosim.silicon.hardware import hardware_sheet, known_hardware
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

USUAL_RATIOS = (0.6, 1.7)
"""Measured step times over a table's that one still believes: tables, host time and mixed steps
together miss engines by up to 35 % in the recordings at hand; GPUs of one generation differ by as
much as twice. Outside of it something is not as it was named."""

_FEWEST_OUTPUTS = 8
_MOST_REQUESTS = 64  # asked of the table; spread over the log


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Measured over expected: 1 is as the table says."""

    decode: float
    prompts: float | None  # of the quickest first tokens; None where cached prompts may be unknown

    @property
    def is_other(self) -> bool:
        """Whether they are not those of the GPU that was named.

        First tokens may be late for many reasons; early, for one that is computed, they cannot be.
        """
        low, high = USUAL_RATIOS
        return not low <= self.decode <= high or self.is_early

    @property
    def is_early(self) -> bool:
        """Whether first tokens come before the GPU that was named could have computed them."""
        return self.prompts is not None and self.prompts < USUAL_RATIOS[0]


def gpu_warning(measured: Measurements, deployment: Deployment, table: StepTimeModel) -> str | None:
    """What to say of a log whose step times are far from the named GPU's; None if they are not."""
    found = step_times_of(measured, deployment, table)
    if found is None or not found.is_other or deployment.hardware is None:
        return None
    text = f"step times are {found.decode:.1f} times those of {deployment.hardware}"
    if found.is_early:
        text += f", first tokens come in {found.prompts:.1f} of the time their prompts take there"
    other = "speculative decoding" if found.decode < 1 else "other requests on the same GPU"
    return (
        f"{text}: is it another GPU? nearest by bandwidth:"
        f" {nearest_by_bandwidth(deployment.hardware, found.decode)}; else another number format,"
        f" or {other}"
    )


def nearest_by_bandwidth(hardware: str, ratio: float) -> str:
    """The known GPU that reads memory so many times slower than the named one."""
    wanted = hardware_sheet(hardware).memory_gb_per_s / ratio
    others = [name for name in known_hardware() if name != hardware]
    return min(others, key=lambda name: abs(log(hardware_sheet(name).memory_gb_per_s / wanted)))


def step_times_of(
    measured: Measurements, deployment: Deployment, table: StepTimeModel
) -> StepTimes | None:
    """Medians over requests; None if too little was generated to tell."""
    rows = np.flatnonzero(measured.output_tokens >= _FEWEST_OUTPUTS)
    if not len(rows):
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _MOST_REQUESTS).astype(int))]
    limit = deployment.engine.max_num_batched_tokens
    per_token_ms = table.step_ms(StepShape.of_prompts(1, limit)) / limit
    computed = measured.input_tokens - cached_tokens(measured)
    starts_ms = measured.arrival_ms + measured.ttft_ms
    ends_ms = measured.end_ms
    context = float((measured.input_tokens + measured.output_tokens / 2).mean())
    decode, prompts = [], []
    for row in rows.tolist():
        start_ms, end_ms = starts_ms[row], ends_ms[row]
        beside_ms = np.clip(np.minimum(ends_ms, end_ms) - np.maximum(starts_ms, start_ms), 0, None)
        number = beside_ms.sum() / max(end_ms - start_ms, 1e-9) / deployment.num_engines
        batch = min(max(round(float(number)), 1), deployment.engine.max_num_seqs)
        step_ms = table.step_ms(StepShape.of_decodes(batch, round(batch * context)))
        meanwhile = (starts_ms > start_ms) & (starts_ms <= end_ms)
        prompts_ms = per_token_ms * float(computed[meanwhile].sum()) / deployment.num_engines
        expected_ms = (int(measured.output_tokens[row]) - 1) * step_ms + prompts_ms
        decode.append(measured.decode_ms[row] / expected_ms)
        prompts.append(measured.ttft_ms[row] / (per_token_ms * max(int(computed[row]), 1)))
    quickest = float(np.percentile(prompts, 20)) if measured.block_tokens else None
    return StepTimes(float(np.median(decode)), quickest)


def cached_tokens(measured: Measurements) -> FloatArray:
    """Prompt tokens whose blocks an earlier request had; what was evicted meanwhile counts too."""
    seen: set[int] = set()
    cached = []
    for hashes in measured.hashes:
        known = 0
        for block in hashes:
            if block not in seen:
                break
            known += 1
        cached.append(known * measured.block_tokens)
        seen.update(hashes)
    return np.array(cached, np.float64)
