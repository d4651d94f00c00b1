"""What a report must say of measured step times: of which versions, how exact, what was refused."""

from dataclasses import dataclass
from typing import Any

from dynosim.silicon.guard import FACTOR
from dynosim.silicon.same_kernels import equivalent_architecture
from dynosim.timing.architecture import ModelEntry, model_shape
from dynosim.timing.links import SHARE_OF_LINK
from dynosim.timing.silicon_table import SiliconTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the table itself does not know."""

    entry: ModelEntry
    backend: str
    wanted: str  # version in use
    quantization: str | None
    holds_whole_experts: bool
    link_gb_per_s: float | None
    over_link: float | None  # measured all-reduces over what the hardware's usual link needs
    is_trusted: bool


def notes_of(table: SiliconTable, facts: Facts) -> tuple[str, ...]:
    """The notes of a model of these tables, the most important first."""
    meta = table.meta
    decode, prefill = meta["decode_error"], meta["prefill_error"]
    notes = [
        *version_notes(meta, facts),
        *guard_notes(meta, is_trusted=facts.is_trusted),
        f"measured kernels make {meta['prefill_measured_share']:.0%} of a 2048-token prefill and"
        f" {meta['decode_measured_share']:.0%} of a 64-sequence decode step; norms, activations and"
        " embeddings are the tables' own estimates",
        f"table against direct queries: decode mean {decode['mean']:.2%}, p99 {decode['p99']:.2%},"
        f" max {decode['max']:.2%}; prefill mean {prefill['mean']:.2%}, p99 {prefill['p99']:.2%},"
        f" max {prefill['max']:.2%}",
    ]
    if facts.link_gb_per_s is not None and meta.get("collectives"):
        notes.append(
            f"all-reduces by a formula over the stated link ({facts.link_gb_per_s:g} GB/s, of which"
            f" {SHARE_OF_LINK:.0%} is reached), not by the tables"
        )
    elif facts.over_link is not None and not 0.5 <= facts.over_link <= FACTOR:
        notes.append(
            f"all-reduces of many tokens take {facts.over_link:.1f} times what the data sheet's"
            " link needs; kept, because the machine decides how GPUs reach each other: state yours"
            " as hardware.link_gb_s"
        )
    if len(table.measured_batches) == 0:
        notes.append("extent of the attention measurements unknown: the table's own is used")
    is_block = model_shape(facts.entry).quantisation == "fp8_block"
    if is_block or facts.quantization == "fp8_block":
        notes.append(
            "the tables' block-wise FP8 matrix products on vllm are suspect (slower than bf16, no"
            " gain from tensor parallelism); quantization: fp8 on the bf16 model is more credible"
        )
    notes += _stand_ins(meta)
    if facts.quantization:
        notes.append(f"{facts.quantization} weights put in place of the checkpoint's own format")
    if facts.holds_whole_experts:
        notes.append("no measurements of experts split over all GPUs: each GPU holds whole experts")
    same = equivalent_architecture(facts.entry)
    if same is not None:
        notes.append(f"kernels asked for as those of {same}, of the same widths")
    if facts.entry.is_packaged is False:
        notes.append(f"model read from {facts.entry.path}")
    return tuple(notes)


def _stand_ins(meta: dict[str, Any]) -> list[str]:
    """Times that are not of the operation that the model has."""
    notes = []
    if "stands_in" in meta:
        notes.append(f"{meta['stands_in']}: their own are not credible")
    if meta.get("left_out"):
        words = ", ".join(meta["left_out"])
        notes.append(f"not in the library's steps, estimated from the data sheet: {words}")
    return notes


def version_notes(meta: dict[str, Any], facts: Facts) -> list[str]:
    """Which version each family's times are of, where another one stands in."""
    sources = meta.get("sources", {})
    notes = []
    if any(version != facts.wanted for version in sources.values()):
        words = ", ".join(f"{family} {version}" for family, version in sources.items())
        notes.append(f"{facts.backend} {facts.wanted} was not measured throughout: {words}")
    if meta.get("other_engines"):
        notes.append("some kernels have no measurements of this engine: those of others fill in")
    return notes


def guard_notes(meta: dict[str, Any], *, is_trusted: bool) -> list[str]:
    """What was refused, or would be, one note for each operation."""
    if "is_guarded" in meta and not meta["is_guarded"]:
        return ["measurements not held against a roofline: nothing known to hold them against"]
    notes = []
    for found in meta.get("guard", ()):
        notes.append(
            f"{found['operation']}: {found['refused']:,} of {found['entries']:,} times"
            f" ({found['smallest']:,.0f} to {found['largest']:,.0f} tokens) are"
            f" {_by_how_much(found['over_roofline'])} what the roofline allows"
            + (
                "; used all the same (timing.trust_tables)"
                if is_trusted
                else f", and not used: estimates of {found['kept']:.2g} times as long instead"
            )
        )
    return notes


def _by_how_much(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio >= 1 else f"{ratio:.2f} of"
