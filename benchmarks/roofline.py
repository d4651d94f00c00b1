"""The roofline against the tables of kernels: errors by card, model and number of GPUs.

    python benchmarks/roofline.py [--hardware H ...] [--model M ...]

Needs aiconfigurator-core; what it has no tables of is left out, and so are models whose FP8 experts
have a scale a tensor, which it times at several times too long. Both sides are device time as it is
served: caches cold, clocks sustained, without host, sampling and padding. Decodes are 14 batches of
1 to 256 sequences with contexts of 512 to 8,192 tokens, prompts 21 of 64 to 8,192 tokens behind 0,
2,048 and 16,384 cached ones; errors are means of absolute log ratios, in per cent.

`left out` gives a card the median of every factor over the classes that it does not belong to: what
to expect of a card that nobody has measured. Models need no leaving out: factors were fitted to
single kernels; only launches of prompts' attention, 3 % of Hopper's share of peak and B200's share
of the link were chosen on sums (Llama 3.1 8B, Qwen3 32B and 30B-A3B), latent attention's on
DeepSeek-V3.

Measured with 0.12, all models but DeepSeek-V3 (decodes and prompts; left out in brackets): H100 5
and 5 (5 and 9), H200 5 and 6 (5 and 9), B200 9 and 10 (11 and 18), A100 6 and 10 (19 and 10), L40S
10 and 5 (12 and 7), RTX PRO 6000 8 and 8 (10 and 9). By model, over the cards: 4 and 6 (Llama 3.1
8B) to 10 and 7 (70B), experts 8 to 10 and 8 to 9. DeepSeek-V3 6 and 15 on H100, 7 and 18 on H200,
far too fast on B200 (67 and 16) and L40S (51 and 56): its launches were chosen on H200, and FP8
products with a scale a block are timed without CUDA graphs. Not fitted at all: B300 with Llama 3.1
8B 2 and 13, with Qwen3 32B on two 2 and 8, on eight 13 and 13.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from statistics import fmean, median

import numpy as np

from dynosim.config.engine import EngineConfig
from dynosim.config.timing import AiconfiguratorTiming
from dynosim.errors import ConfigError
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import model_shape
from dynosim.timing.model import StepTimeModel
from dynosim.timing.module_formats import module_formats
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.roofline_factors import (
    ADA,
    AMPERE,
    BLACKWELL,
    HOPPER,
    PRO_BLACKWELL,
    RooflineFactors,
    factors_of,
)
from dynosim.timing.step import StepShape

HARDWARE = ("h100_sxm", "h200_sxm", "b200_sxm", "a100_sxm", "l40s", "rtx_pro_6000_server")
UNFITTED = ("b300_sxm", "gb200")
MODELS = {
    "meta-llama/Llama-3.1-8B": (1, 4),
    "Qwen/Qwen3-32B": (2, 8),
    "meta-llama/Llama-3.1-70B": (8,),
    "Qwen/Qwen3-32B-FP8": (4,),
    "Qwen/Qwen3-30B-A3B": (2,),
    "Qwen/Qwen3-30B-A3B-FP8": (1,),
    "mistralai/Mixtral-8x7B-v0.1": (4,),
    "Qwen/Qwen3-235B-A22B-FP8": (8,),
    "deepseek-ai/DeepSeek-V3": (8,),
}
DECODES = [
    StepShape.of_decodes(batch, batch * context)
    for batch in (1, 4, 16, 64, 256)
    for context in (512, 2048, 8192)
    if batch * context <= 700_000
]
PROMPTS = [
    StepShape.of_prompts(1, new, cached)
    for new in (64, 256, 512, 1024, 2048, 4096, 8192)
    for cached in (0, 2048, 16_384)
]
CLASSES = (HOPPER, BLACKWELL, AMPERE, ADA, PRO_BLACKWELL)
ALONE = {"step_overhead_ms": 0.0, "ingress_ms": 0.0, "egress_ms": 0.0}


def tables(model: str, hardware: str, gpus: int) -> StepTimeModel:
    """What the tables say. Raises: ConfigError where they say nothing."""
    times = aiconfigurator_model(
        AiconfiguratorTiming.of({"kind": "aiconfigurator", **ALONE}),
        model=model,
        hardware=hardware,
        engine=EngineConfig(tensor_parallel=gpus),
        graph_sizes=(),
    )
    times._per_sequence_ms = 0.0
    return times


def roofline(model: str, hardware: str, gpus: int, factors: RooflineFactors) -> RooflineModel:
    entry, sheet = model_entry(model), hardware_sheet(hardware)
    shape = model_shape(entry)
    return RooflineModel(
        shape,
        sheet,
        tensor_parallel=gpus,
        formats=module_formats(entry, shape, None),
        factors=factors,
    )


def of_other_classes(factors: RooflineFactors) -> RooflineFactors:
    """The median of each factor over all classes but this one."""
    others = [astuple(one) for one in CLASSES if one != factors]
    names = [field.name for field in fields(RooflineFactors)]
    return RooflineFactors(**dict(zip(names, map(median, zip(*others, strict=True)), strict=True)))


def errors(model: StepTimeModel, truth: StepTimeModel, steps: Iterable[StepShape]) -> np.ndarray:
    return np.array([np.log(model.step_ms(step) / truth.step_ms(step)) for step in steps])


def row(model: str, hardware: str, gpus: int) -> list[float]:
    """Mean error and bias of decodes and prompts, and the mean errors when left out."""
    truth = tables(model, hardware, gpus)
    own = factors_of(hardware_sheet(hardware))
    one = roofline(model, hardware, gpus, own)
    other = roofline(model, hardware, gpus, of_other_classes(own))
    found: list[float] = []
    for steps in (DECODES, PROMPTS):
        error = errors(one, truth, steps)
        found += [float(np.mean(np.abs(error))), float(np.mean(error))]
    found += [float(np.mean(np.abs(errors(other, truth, steps)))) for steps in (DECODES, PROMPTS)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hardware", nargs="+", default=[*HARDWARE, *UNFITTED])
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    chosen = parser.parse_args()
    print("| card | model | GPUs | decode | bias | prompts | bias | left out: decode | prompts |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: list[tuple[str, str, list[float]]] = []
    for hardware in chosen.hardware:
        for model in chosen.model:
            for gpus in MODELS.get(model, (1,)):
                try:
                    found = row(model, hardware, gpus)
                except ConfigError:
                    continue
                rows.append((hardware, model, found))
                print(line(hardware, model, str(gpus), found), flush=True)
    for place in (0, 1):
        for name in dict.fromkeys(one[place] for one in rows):
            of_name = [found for *names, found in rows if names[place] == name]
            means = [fmean(column) for column in zip(*of_name, strict=True)]
            hardware, model = (name, "all") if place == 0 else ("all", name)
            print(line(hardware, model, str(len(of_name)), means))


def line(hardware: str, model: str, count: str, found: Sequence[float]) -> str:
    decode, decode_bias, prompts, prompts_bias, decode_out, prompts_out = (100 * f for f in found)
    return (
        f"| {hardware} | {model} | {count} | {decode:.0f} | {decode_bias:+.0f} | {prompts:.0f}"
        f" | {prompts_bias:+.0f} | {decode_out:.0f} | {prompts_out:.0f} |"
    )


if __name__ == "__main__":
    main()
