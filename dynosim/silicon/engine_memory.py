"""What vLLM keeps in a GPU's memory beside the weights, before it gives the rest to the KV cache.

vLLM's rule: KV bytes = fraction x total - weights - peak of a profiling step - memory outside of
PyTorch (- CUDA graphs, since 0.21). The profiling step computes `max_num_batched_tokens` prompt
tokens and samples for `max_num_seqs` requests; its peak is the largest of what is alive at once in
one of its moments. Each part below says where it comes from: vLLM's code, or published start-up
logs of vLLM on H100s ("start-ups"); what those leave open was fitted on 13 start-ups of vLLM 0.15.1
on H100, see docs/fidelity.md and benchmarks/capacity.py, which leaves out each model in turn.
"""

from typing import Protocol

from dynosim.engine.vllm.versions import NEWEST, graph_sizes, parse_version
from dynosim.timing.architecture import ModelEntry, ModelShape
from dynosim.timing.sheets import GIB, HardwareSheet
from dynosim.timing.weights import MIB, PLAIN_BYTES, Split, embedding_bytes, rotary_bytes


class Profiled(Split, Protocol):
    """An engine as far as its profiling step depends on it."""

    @property
    def version(self) -> str | None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @property
    def max_model_len(self) -> int | None: ...


_TRITON_SAMPLER = (0, 17)
"""From here on top-k and top-p are a Triton kernel (vLLM pull request 33538) instead of a sort."""
_LOGITS_COPIES_SORTED = 9.5
"""Copies of the fp32 logits that are alive while they are sorted. Start-ups of 0.15 and 0.16 with
1,024 requests: 9.5 to 9.7 (vocabularies of 128,256 and 151,936)."""
_LOGITS_COPIES = 3.5
"""The same with the kernel: logits in 16 and 32 bits, probabilities, and noise of their size.
Start-ups of 0.19: 3.4 to 3.6 (vocabularies of 49,155 to 262,208)."""
_SAMPLER_BUFFER_BYTES = 80 * MIB
"""What that kernel keeps beside them, as its authors measured it."""

_MOST_CHUNKED_TOKENS = 16_384
"""Tokens that pass the experts at once (vLLM's VLLM_FUSED_MOE_CHUNK_SIZE)."""
_LATENT_PREFILL_TOKENS = 65_536
"""Most tokens whose cached latents a step expands at once (vLLM's MLA attention)."""

_NEW_RUNTIME = (0, 18)
"""From here on more is kept outside of PyTorch, on one GPU and among several."""
_RUNTIME_BYTES, _NEW_RUNTIME_BYTES = int(0.13 * GIB), int(0.25 * GIB)
"""Kernels and workspaces loaded since the start, without the CUDA context, which vLLM leaves out.
Start-ups: 0.13 GiB with 0.15 to 0.17, 0.24 to 0.27 since 0.18."""
PEERS_BYTES = int(0.45 * GIB)
"""NCCL's and the custom all-reduce's buffers of a GPU with peers. Fitted on the H100 start-ups with
2 and 4 GPUs; other start-ups of 0.15 and 0.16: 0.42."""
_FUSED_PEERS_BYTES = int(1.85 * GIB)
"""The same with the workspace of FlashInfer's fused all-reduce, which Hopper and Blackwell with
NVLink have since 0.18. Start-ups of 0.19: 1.82 (2 GPUs) to 1.96 (4 GPUs)."""
_FUSING_LINK_GB_PER_S = 200
"""Links that are NVLink for certain: faster than any PCIe."""

_COUNTED_GRAPHS = (0, 21)
"""From here on vLLM's estimate of its CUDA graphs is taken from the cache."""
_GRAPH_BYTES = MIB // 4
"""Of one graph, per layer. Start-ups of 0.19 and later: 0.16 to 0.36 MiB."""


def activation_bytes(
    entry: ModelEntry, shape: ModelShape, engine: Profiled, *, is_eager: bool = False
) -> int:
    """Peak of what PyTorch allocates in the profiling step.

    Hidden states and residual are always alive, and the experts' workspace once it is made. Beside
    them: the largest of the copy that compiling makes of the largest table that the model reads
    rows of (not with `is_eager`: `enforce_eager`), a feed-forward block, the latents expanded for
    attention, the sampler's logits.
    """
    tokens, ranks = engine.max_num_batched_tokens, engine.tensor_parallel
    hidden_states = tokens * shape.hidden * PLAIN_BYTES
    moments = (
        0 if is_eager else _compiling_bytes(entry, shape, engine),
        3 * tokens * -(-_widest(shape) // ranks) * PLAIN_BYTES + 2 * hidden_states,
        _latent_bytes(shape, engine),
        _sampler_bytes(shape, engine),
    )
    return 2 * hidden_states + max(moments) + _experts_bytes(shape, engine)


def runtime_bytes(shape: ModelShape, engine: Profiled, sheet: HardwareSheet) -> int:
    """What is allocated outside of PyTorch while the engine starts."""
    is_new = _version(engine) >= _NEW_RUNTIME
    alone = _NEW_RUNTIME_BYTES if is_new else _RUNTIME_BYTES
    if _peers(shape, engine) == 1:
        return alone
    is_fused = is_new and engine.tensor_parallel > 1 and _fuses_all_reduce(sheet)
    return alone + (_FUSED_PEERS_BYTES if is_fused else PEERS_BYTES)


def graph_bytes(shape: ModelShape, engine: Profiled) -> int:
    """CUDA graphs, where the engine's version takes them from the cache.

    There are those of parts of a step, of each captured size, and those of whole decode steps, of
    the sizes up to `max_num_seqs`.
    """
    if _version(engine) < _COUNTED_GRAPHS:
        return 0
    sizes = graph_sizes(engine.version, engine.max_num_seqs)
    whole = [size for size in sizes if size <= engine.max_num_seqs]
    return (len(sizes) + len(whole)) * shape.layers * _GRAPH_BYTES


def _version(engine: Profiled) -> tuple[int, ...]:
    return parse_version(engine.version or NEWEST)


def _peers(shape: ModelShape, engine: Profiled) -> int:
    """GPUs that a GPU exchanges data with in a step; ranks without experts are on their own."""
    return engine.tensor_parallel * (engine.data_parallel if shape.experts else 1)


def _fuses_all_reduce(sheet: HardwareSheet) -> bool:
    has_fp8 = sheet.fp8_tflops > sheet.bf16_tflops
    return has_fp8 and sheet.link_gb_per_s >= _FUSING_LINK_GB_PER_S


def _widest(shape: ModelShape) -> int:
    """Inner width of the widest plain feed-forward block: gate and up projection and their product
    are alive at once."""
    return max(shape.intermediate if shape.dense_layers else 0, shape.shared_intermediate)


def _compiling_bytes(entry: ModelEntry, shape: ModelShape, engine: Profiled) -> int:
    """One more copy of the embedding, or of the rotary table where that is larger.

    Seen in all 13 start-ups of 0.15.1, and in those of later versions in which nothing else is
    larger. Models with a vision tower embed their tokens outside of what is compiled.
    """
    rotary = rotary_bytes(entry, shape)
    if isinstance(entry.config.get("vision_config"), dict):
        return rotary
    return max(rotary, embedding_bytes(shape, engine))


def _sampler_bytes(shape: ModelShape, engine: Profiled) -> int:
    """All of the vocabulary on every GPU: the logits are gathered before they are sampled."""
    requests = min(engine.max_num_seqs, engine.max_num_batched_tokens)
    logits = requests * shape.vocabulary * 4
    if _version(engine) < _TRITON_SAMPLER:
        return int(_LOGITS_COPIES_SORTED * logits)
    return int(_LOGITS_COPIES * logits) + _SAMPLER_BUFFER_BYTES


def _latent_bytes(shape: ModelShape, engine: Profiled) -> int:
    """Keys and values of the latents of as many cached tokens as a step expands at once."""
    if not shape.latent_width:
        return 0
    length = engine.max_model_len or shape.max_context or _LATENT_PREFILL_TOKENS
    least = engine.max_num_seqs * engine.block_size
    tokens = max(least, min(max(8 * length, 4 * least), _LATENT_PREFILL_TOKENS))
    width = shape.head_dim + shape.value_head_dim
    return tokens * shape.heads // engine.tensor_parallel * width * PLAIN_BYTES


def _experts_bytes(shape: ModelShape, engine: Profiled) -> int:
    """The experts' workspace: two buffers of each token's copies for its experts.

    Source: vLLM's modular expert kernels, and start-ups of 0.19 within 0.03 GiB (Qwen3-30B-A3B,
    Qwen1.5-MoE, DeepSeek-V2-Lite). Ranks gather the tokens of all of them.
    """
    if not shape.experts:
        return 0
    gpus = engine.tensor_parallel * engine.data_parallel
    inner = shape.expert_intermediate
    inner = inner if engine.expert_parallel else -(-inner // gpus)
    gathered = engine.max_num_batched_tokens * engine.data_parallel
    widths = max(inner, shape.hidden) + max(2 * inner, shape.hidden)
    copies = min(gathered, _MOST_CHUNKED_TOKENS) * shape.experts_per_token
    exchange = 2 * gathered * shape.hidden if engine.data_parallel > 1 else 0
    return (copies * widths + exchange) * PLAIN_BYTES
