"""What a model's weights take on one GPU, each module at its own width and split as vLLM splits it.

Source of the splits: vLLM's parallel layers. Attention, feed-forward blocks, embeddings and the
vision tower are split over the GPUs of a rank (`tensor_parallel`); key and value heads are repeated
once there are more GPUs than heads; what a latent attention computes before its heads, routers and
norms are repeated on each GPU. Experts are split over all GPUs of a worker, ranks included: each a
part of every expert, or, with `expert_parallel`, whole experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from dynosim.timing.architecture import ModelEntry, ModelShape
from dynosim.timing.number_formats import weight_element_bytes
from dynosim.timing.quantised import Quantised, quantised

MIB = 1024**2
PLAIN_BYTES = 2
"""Of a weight that is not quantised: bf16 or fp16."""

_MLP = ("mlp", "feed_forward", "ffn")
_MOE = (*_MLP, "block_sparse_moe")
_BESIDE_MLP = ("gemma4",)
"""Kinds of model whose layers have a plain feed-forward block, and experts beside it."""
_UP = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3")
_DOWN = ("down_proj", "w2")
_PADDED_TO = 256
"""MXFP4 experts: hidden width and each GPU's part of the inner width are rounded up to multiples of
256 and 128 (vLLM's Mxfp4MoEMethod)."""


class Split(Protocol):
    """How a worker is split over GPUs."""

    @property
    def tensor_parallel(self) -> int: ...
    @property
    def data_parallel(self) -> int: ...
    @property
    def expert_parallel(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Gpus:
    """A `Split` by itself; by default one GPU that holds everything."""

    tensor_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """Equal tensors of one GPU that are allocated one by one."""

    part: str  # of the model: attention, mlp, experts, ...
    elements: int
    element_bytes: float = PLAIN_BYTES

    @property
    def bytes(self) -> int:
        """As PyTorch's allocator counts it.

        Source: PyTorch's CUDACachingAllocator: blocks of 10 MiB and more are rounded up to 2 MiB,
        and what is left over of one is of use to others only if it is more than 1 MiB.
        """
        size = int(self.elements * self.element_bytes)
        left_over = -size % (2 * MIB)
        return size + left_over if size >= 10 * MIB and left_over <= MIB else size


def gpu_weights(
    entry: ModelEntry, shape: ModelShape, split: Split, number_format: str | None
) -> dict[str, int]:
    """Bytes on one GPU by part of the model; `number_format` None: the checkpoint's own."""
    formats = quantised(entry, number_format)
    found: dict[str, int] = {}
    for tensor in (*_ends(entry, shape, split), *_layers(entry, shape, split, formats)):
        found[tensor.part] = found.get(tensor.part, 0) + tensor.bytes
    return found


def rotary_bytes(entry: ModelEntry, shape: ModelShape) -> int:
    """The table of rotary angles, for each position of the model's context: on every GPU, once.

    Source: vLLM's RotaryEmbedding keeps cosines and sines in the model's 16-bit type. 2.5 GiB for
    Llama 4 Scout with its 10,485,760 positions.
    """
    config = text_config(entry)
    width = shape.latent_width - shape.latent_rank if shape.latent_width else shape.head_dim
    share = config.get("partial_rotary_factor")
    if isinstance(share, int | float):
        width = int(width * share)
    return (shape.max_context or 0) * width * PLAIN_BYTES


def embedding_bytes(shape: ModelShape, split: Split) -> int:
    """One GPU's part of the input embedding."""
    return Tensor("embeddings", -(-shape.vocabulary // split.tensor_parallel) * shape.hidden).bytes


def text_config(entry: ModelEntry) -> dict[str, Any]:
    """The part of a config that tells of the decoder."""
    config: dict[str, Any] = entry.config.get("text_config") or entry.config
    return config


def _ends(entry: ModelEntry, shape: ModelShape, split: Split) -> Iterator[Tensor]:
    """What is not in the decoder's layers; none of it is quantised."""
    table = embedding_bytes(shape, split) // PLAIN_BYTES
    yield Tensor("embeddings", table)
    if not shape.is_tied:
        yield Tensor("lm_head", table)
    yield Tensor("norms", shape.hidden * (2 * shape.layers + 1))
    yield Tensor("rotary", rotary_bytes(entry, shape) // PLAIN_BYTES)
    yield Tensor("vision", vision_parameters(entry.config, shape.hidden) // split.tensor_parallel)


def _layers(
    entry: ModelEntry, shape: ModelShape, split: Split, formats: Quantised
) -> Iterator[Tensor]:
    has_bias = bool(text_config(entry).get("attention_bias")) or "qwen2" in str(
        text_config(entry).get("model_type")
    )
    with_experts = _expert_layers(entry, shape)
    is_beside = str(text_config(entry).get("model_type")).startswith(_BESIDE_MLP)
    parents = ("moe",) if is_beside else _MOE
    for layer in range(shape.layers):
        yield from _attention(shape, split, formats, layer, has_bias=has_bias)
        if layer in with_experts:
            yield from _experts(shape, split, formats, layer, parents)
        if layer not in with_experts or is_beside:
            yield from _feed_forward("mlp", _MLP, shape.intermediate, shape, split, formats, layer)


def _expert_layers(entry: ModelEntry, shape: ModelShape) -> range | frozenset[int]:
    """Which layers have experts: as many as the shape says."""
    if not shape.experts:
        return range(0)
    config = text_config(entry)
    step, only = config.get("interleave_moe_layer_step"), config.get("mlp_only_layers")
    if isinstance(step, int) and step > 1:
        return range(step - 1, shape.layers, step)
    if isinstance(only, list):
        return frozenset(range(shape.layers)) - frozenset(only)
    return range(shape.dense_layers, shape.layers)


def _attention(
    shape: ModelShape, split: Split, formats: Quantised, layer: int, *, has_bias: bool
) -> Iterator[Tensor]:
    for names, elements in _attention_modules(shape, split.tensor_parallel, has_bias):
        number_format = formats.format_of([f"self_attn.{name}" for name in names], layer)
        yield Tensor("attention", elements, weight_element_bytes(number_format))


def _attention_modules(
    shape: ModelShape, ranks: int, has_bias: bool
) -> list[tuple[tuple[str, ...], int]]:
    """Names and elements on one GPU of the modules of one layer's attention."""
    heads = shape.heads // ranks
    if not shape.latent_width:
        widths = (heads + 2 * -(-shape.kv_heads // ranks)) * shape.head_dim
        qkv = shape.hidden * widths + (widths if has_bias else 0)
        return [
            (("q_proj", "k_proj", "v_proj", "qkv_proj"), qkv),
            (("o_proj",), heads * shape.head_dim * shape.hidden),
        ]
    rotary = shape.latent_width - shape.latent_rank
    query = heads * (shape.head_dim + rotary)
    modules = [
        (("kv_a_proj_with_mqa",), shape.hidden * shape.latent_width),
        (("kv_b_proj",), shape.latent_rank * heads * (shape.head_dim + shape.value_head_dim)),
        (("o_proj",), heads * shape.value_head_dim * shape.hidden),
    ]
    if not shape.query_rank:
        return [*modules, (("q_proj",), shape.hidden * query)]
    return [
        *modules,
        (("q_a_proj",), shape.hidden * shape.query_rank),
        (("q_b_proj",), shape.query_rank * query),
    ]


def _feed_forward(
    part: str,
    parents: tuple[str, ...],
    width: int,
    shape: ModelShape,
    split: Split,
    formats: Quantised,
    layer: int,
) -> Iterator[Tensor]:
    inner = -(-width // split.tensor_parallel)
    for names, tensors in ((_UP, 2), (_DOWN, 1)):
        modules = [f"{parent}.{name}" for parent in parents for name in names]
        width_bytes = weight_element_bytes(formats.format_of(modules, layer))
        yield Tensor(part, tensors * inner * shape.hidden, width_bytes)


def _experts(
    shape: ModelShape, split: Split, formats: Quantised, layer: int, parents: tuple[str, ...]
) -> Iterator[Tensor]:
    gpus = split.tensor_parallel * split.data_parallel
    experts, inner, hidden = shape.experts, -(-shape.expert_intermediate // gpus), shape.hidden
    if split.expert_parallel:
        experts, inner = -(-shape.experts // gpus), shape.expert_intermediate
    names = [f"{parent}.experts.0.{name}" for parent in parents for name in (*_UP, *_DOWN)]
    number_format = formats.format_of(names, layer)
    if number_format == "mxfp4":
        hidden, inner = _padded(hidden, _PADDED_TO), _padded(inner, _PADDED_TO // 2)
    for tensors in (2, 1):
        elements = tensors * experts * inner * hidden
        yield Tensor("experts", elements, weight_element_bytes(number_format))
    yield Tensor("router", shape.experts * shape.hidden)
    if shape.shared_intermediate:
        shared = tuple(f"{parent}.shared_expert{s}" for parent in _MOE for s in ("", "s"))
        yield from _feed_forward(
            "shared_experts", shared, shape.shared_intermediate, shape, split, formats, layer
        )


def _padded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def vision_parameters(config: dict[str, Any], text_hidden: int) -> int:
    """Weights of a vision tower and of what leads from it to the decoder; 0 without one.

    Transformer blocks of the stated widths, patches, and the merging layers of Qwen-VL (two
    matrices each) or a projection from the stated or the tower's own width.
    """
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        return 0
    hidden = _first(vision, "hidden_size", "embed_dim", "vt_hidden_size")
    layers = _first(vision, "num_hidden_layers", "depth", "num_layers", "vt_num_hidden_layers")
    inner = _first(vision, "intermediate_size", "vt_intermediate_size") or 4 * hidden
    matrices = 3 if vision.get("hidden_act") == "silu" else 2
    patch = _first(vision, "patch_size") ** 2 * 3 * (_first(vision, "temporal_patch_size") or 1)
    tower = layers * (4 * hidden**2 + matrices * hidden * inner) + patch * hidden
    merged = hidden * _first(vision, "spatial_merge_size") ** 2
    if merged:
        mergers = 1 + len(vision.get("deepstack_visual_indexes") or ())
        return tower + mergers * (merged * merged + merged * text_hidden)
    out = _first(vision, "projector_output_dim")
    if out:
        return tower + inner * out + out * out + out * text_hidden
    return tower + hidden * text_hidden


def _first(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    return 0
