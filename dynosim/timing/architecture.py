"""The shape of a transformer, from its Hugging Face config: parameters, operations, cache bytes.

Knows dense and mixture-of-experts decoders with full attention (MHA, GQA, MQA) or multi-head latent
attention (DeepSeek V2/V3). Refuses hybrids with recurrent layers, sparse attention and compressed
caches: their costs follow other laws.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dynosim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model's name and what its files say."""

    name: str  # packaged name, or the path as given
    config: dict[str, Any]  # Hugging Face config.json
    quantisation: dict[str, Any] | None  # hf_quant_config.json
    path: str  # of the config.json
    is_packaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Counts and widths of one model; a width is in elements."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    latent_width: int  # cached elements per token and layer of latent attention; 0 without
    rope_width: int  # rotary part of `latent_width`; 0 without latent attention
    query_rank: int  # latent attention: rank of the query projection, 0 if full
    value_head_dim: int
    vocabulary: int
    is_tied: bool  # input and output embedding are one matrix
    dense_layers: int  # layers with a plain feed-forward block
    intermediate: int  # of plain feed-forward blocks
    experts: int  # 0: no layer has experts
    experts_per_token: int
    expert_intermediate: int
    shared_intermediate: int  # all shared experts of a layer together
    max_context: int | None
    quantisation: str | None  # of the checkpoint: fp8, fp8_block, nvfp4, mxfp4, ... or None
    obstacle: str | None  # why formulas do not apply; None if they do

    has_windows: bool  # some layers attend to a sliding window only

    @property
    def is_recurrent(self) -> bool:
        """Some layers keep a state per sequence instead of a cache per token."""
        return self.obstacle == _RECURRENT

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention block."""
        if self.latent_width:
            query_out = self.heads * (self.head_dim + self.rope_width)
            query = (
                self.query_rank * (self.hidden + query_out)
                if self.query_rank
                else self.hidden * query_out
            )
            up = self.latent_rank * self.heads * (self.head_dim + self.value_head_dim)
            output = self.heads * self.value_head_dim * self.hidden
            return query + self.hidden * self.latent_width + up + output
        qkv = self.hidden * self.head_dim * (self.heads + 2 * self.kv_heads)
        return qkv + self.heads * self.head_dim * self.hidden

    @property
    def latent_rank(self) -> int:
        return self.latent_width - self.rope_width

    @property
    def expert_layers(self) -> int:
        return self.layers - self.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert (gate, up and down projection)."""
        return 3 * self.hidden * self.expert_intermediate

    @property
    def plain_parameters(self) -> int:
        """Weights that every token uses: attention, plain and shared feed-forward, routers."""
        return (
            self.layers * self.attention_parameters
            + self.dense_layers * 3 * self.hidden * self.intermediate
            + self.expert_layers
            * (3 * self.hidden * self.shared_intermediate + self.hidden * self.experts)
        )

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    @property
    def parameters(self) -> int:
        experts = self.expert_layers * self.experts * self.expert_parameters
        return self.plain_parameters + experts + self.embedding_parameters

    def kv_bytes_per_token(self, tensor_parallel: int, element_bytes: float) -> int:
        """Cache bytes of one token on one rank; latent caches are replicated, heads are split."""
        if self.latent_width:
            return int(self.layers * self.latent_width * element_bytes)
        heads = -(-self.kv_heads // tensor_parallel)
        return int(self.layers * 2 * heads * self.head_dim * element_bytes)


_RECURRENT = "it has recurrent layers"


def model_shape(entry: ModelEntry) -> ModelShape:
    """The shape that a config states.

    Raises: ConfigError naming the file and the field that is missing or not a number.
    """
    config = entry.config.get("text_config") or entry.config
    read = _Reader(config, entry.path)
    heads = read.count("num_attention_heads", "n_head")
    hidden = read.count("hidden_size", "n_embd")
    latent = read.optional("kv_lora_rank")
    # transformers' own default where a config does not state it
    rope = (read.optional("qk_rope_head_dim") or 64) if latent else 0
    experts = read.optional("n_routed_experts", "num_experts", "num_local_experts")
    layers = len(config.get("layers_block_type") or ()) or read.count(
        "num_hidden_layers", "n_layer"
    )
    intermediate = read.optional("intermediate_size_mlp", "intermediate_size") or 4 * hidden
    expert_intermediate = read.optional("moe_intermediate_size") or read.optional(
        "intermediate_size"
    )
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=read.optional("num_key_value_heads") or heads,
        head_dim=read.optional("qk_nope_head_dim") if latent else _head_dim(read, hidden, heads),
        latent_width=latent + rope,
        rope_width=rope,
        query_rank=read.optional("q_lora_rank"),
        value_head_dim=read.optional("v_head_dim"),
        vocabulary=read.count("vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        dense_layers=_dense_layers(config, layers) if experts else layers,
        intermediate=intermediate,
        experts=experts,
        experts_per_token=read.optional("num_experts_per_tok", "moe_topk", "top_k_experts"),
        expert_intermediate=expert_intermediate if experts else 0,
        shared_intermediate=_shared_intermediate(read, expert_intermediate) if experts else 0,
        max_context=context_length(config),
        quantisation=stated_quantisation(entry)[1],
        obstacle=_obstacle(config),
        has_windows=_has_windows(config),
    )


def context_length(config: dict[str, Any]) -> int | None:
    """Tokens of a request at most, as a model's config.json states it; None where it does not."""
    length = (config.get("text_config") or config).get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def require_divisible(shape: ModelShape, tensor_parallel: int) -> None:
    """Raises ConfigError where vLLM would refuse the tensor parallelism."""
    if shape.heads % tensor_parallel:
        divisors = [n for n in range(1, shape.heads + 1) if shape.heads % n == 0]
        legal = ", ".join(map(str, divisors))
        raise ConfigError(
            f"engine.tensor_parallel: {tensor_parallel} does not divide the model's"
            f" {shape.heads} attention heads (use {legal})"
        )


class _Reader:
    """Reads whole numbers under any of several names."""

    def __init__(self, config: dict[str, Any], path: str) -> None:
        self.config = config
        self.path = path

    def optional(self, *names: str) -> int:
        """The first present value, 0 if none is."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, list):  # per-layer values: the widest
                value = max((v for v in value if isinstance(v, int)), default=0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(
                    f"model: {self.path}: {name}: expected a whole number, got {value!r}"
                )
            return value
        return 0

    def count(self, *names: str) -> int:
        value = self.optional(*names)
        if value < 1:
            raise ConfigError(f"model: {self.path}: {names[0]}: missing or 0")
        return value


def _head_dim(read: _Reader, hidden: int, heads: int) -> int:
    return read.optional("head_dim") or hidden // heads


def _dense_layers(config: dict[str, Any], layers: int) -> int:
    first = config.get("first_k_dense_replace")
    if isinstance(first, int):
        return min(first, layers)
    step = config.get("interleave_moe_layer_step")  # Llama 4: every so many layers has experts
    if isinstance(step, int) and step > 0:
        return layers - layers // step
    only = config.get("mlp_only_layers")
    return len(only) if isinstance(only, list) else 0


def _shared_intermediate(read: _Reader, expert_intermediate: int) -> int:
    stated = read.optional("shared_expert_intermediate_size")
    number = read.optional("n_shared_experts")
    if str(read.config.get("model_type")).startswith("llama4"):
        number = 1
    return stated or number * expert_intermediate


def stated_quantisation(entry: ModelEntry) -> tuple[dict[str, Any], str | None]:
    """What the files say of the checkpoint's quantisation, and its number format (None: none)."""
    text = entry.config.get("text_config") or {}
    stated = entry.config.get("quantization_config") or text.get("quantization_config")
    own = (entry.quantisation or {}).get("quantization") or {}
    if isinstance(stated, dict):
        method = str(stated.get("quant_method") or stated.get("quant_algo") or "").lower()
        both = own | stated
        if method == "fp8":
            return both, "fp8_block" if stated.get("weight_block_size") else "fp8"
        if method == "modelopt":
            method = str(stated.get("quant_algo") or "fp8").lower()
        if method == "compressed-tensors":
            return both, compressed_format((stated.get("config_groups") or {}).values())
        if method == "bitsandbytes":
            method = "int4" if stated.get("load_in_4bit") else "int8"
        elif stated.get("bits") == 8:  # GPTQ and its kin leave activations at 16 bits
            method = "w8a16"
        if method:
            return both, method
    algorithm = own.get("quant_algo")
    return own, str(algorithm).lower() if algorithm else None


def compressed_format(groups: Iterable[dict[str, Any]]) -> str:
    """Number format of compressed-tensors groups: the narrowest weights and their activations."""
    found = [(group.get("weights") or {}, group.get("input_activations")) for group in groups]
    weights, activations = min(found, key=lambda pair: _bits(pair[0]), default=({}, {}))
    if not found:
        return "fp8"
    if _bits(weights) == 4:
        if weights.get("type") == "float":
            kind = "mxfp4" if weights.get("group_size") == 32 else "nvfp4"
            return kind if activations else f"{kind}_wo"
        return "w4afp8" if activations else "int4"
    if not activations:
        return "w8a16"
    if weights.get("type") != "float":
        return "int8"
    return "fp8_block" if weights.get("strategy") == "block" else "fp8"


def _bits(weights: dict[str, Any]) -> int:
    bits = weights.get("num_bits")
    return bits if isinstance(bits, int) else 8


def _obstacle(config: dict[str, Any]) -> str | None:
    kinds = config.get("layer_types") or []
    if "linear_attention" in kinds or config.get("hybrid_override_pattern"):
        return _RECURRENT
    if config.get("linear_attn_config") or config.get("layers_block_type"):
        return _RECURRENT
    if config.get("index_topk") or config.get("sparse_attention_config"):
        return "its attention is sparse"
    if config.get("compress_ratios") or config.get("compress_ratio"):
        return "its cache is compressed"
    if config.get("block_configs"):
        return "its layers differ in shape"
    return None


def _has_windows(config: dict[str, Any]) -> bool:
    if config.get("attention_chunk_size"):
        return True
    kinds = set(config.get("layer_types") or [])
    if kinds:
        return bool(kinds & {"sliding_attention", "chunked_attention"})
    return bool(config.get("sliding_window") and config.get("use_sliding_window", True))
