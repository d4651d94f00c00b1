"""Number formats of a model's weights by kind of module: attention may keep 16 bits beside experts
of 4."""

from dataclasses import dataclass

from dynosim.timing.architecture import ModelEntry, ModelShape
from dynosim.timing.quantised import quantised

_ATTENTION = ("q_proj", "o_proj", "qkv_proj", "q_b_proj")
_BLOCKS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_UP = ("gate_proj", "up_proj", "gate_up_proj", "w1")


@dataclass(frozen=True, slots=True)
class ModuleFormats:
    """None: 16 bits."""

    attention: str | None = None
    feed_forward: str | None = None
    shared: str | None = None
    experts: str | None = None

    @classmethod
    def uniform(cls, number_format: str | None) -> "ModuleFormats":
        """All in one."""
        return cls(number_format, number_format, number_format, number_format)


def module_formats(
    entry: ModelEntry, shape: ModelShape, number_format: str | None
) -> ModuleFormats:
    """Of a model served in `number_format` (None: its checkpoint's), by a layer in the middle; of
    plain feed-forward blocks by the first layer, which has one where any of them has."""
    formats, layer = quantised(entry, number_format), shape.layers // 2
    ups = [f"{block}.{name}" for block in _BLOCKS for name in _UP]
    shared = [
        f"{block}.shared_expert{s}.{up}" for block in _BLOCKS for s in ("", "s") for up in _UP
    ]
    experts = [f"{block}.experts.0.{up}" for block in _BLOCKS for up in _UP]
    return ModuleFormats(
        attention=formats.format_of([f"self_attn.{name}" for name in _ATTENTION], layer),
        feed_forward=formats.format_of(ups, 0),
        shared=formats.format_of(shared, layer),
        experts=formats.format_of(experts, layer),
    )
