"""Step times estimated from a model's config and a hardware data sheet.

A step is the sum of its kernels: matrix products and experts (`roofline_products`), norms and
activations, attention of prompts (computing) and of decodes (a launch, and reading the cache from
memory), all-reduces (`roofline_links`). What kernels reach of a data sheet is known by class of GPU
and stands in `roofline_factors`, with what it was fitted to.

Against the tables of aiconfigurator-core 0.12 for vLLM, as served (`benchmarks/roofline.py`: nine
models on 1 to 8 GPUs, decodes of 1 to 256 sequences, prompts of 64 to 8,192 tokens) the mean error
of decodes and of prompts is 5 and 5 % on H100, 5 and 6 % on H200, 9 and 10 % on B200, 6 and 10 % on
A100, 10 and 5 % on L40S, 8 and 8 % on RTX PRO 6000. Worst: latent attention (DeepSeek-V3: 6 and 15
% on H100, over 50 % too fast on B200 and L40S); FP8 products with a scale a block, which the tables
time without CUDA graphs (B200: 11 % too fast); experts of few tokens, which the tables read from
the L2 cache (up to 30 % too slow); eight cards on PCIe (10 to 20 % off either way).

The tables hold no host time, no padding to CUDA graphs and no attention of prompts and decodes in
one kernel, and no sampling: these come on top, see `host`, `graphs`, `mixed` and `sampler`.
"""

from copy import copy

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray, IntArray
from dynosim.timing.architecture import ModelShape
from dynosim.timing.graphs import padded_tokens
from dynosim.timing.host import HostTime
from dynosim.timing.mixed import SharedKernel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.module_formats import ModuleFormats
from dynosim.timing.roofline_factors import RooflineFactors, factors_of
from dynosim.timing.roofline_links import Ring
from dynosim.timing.roofline_products import Product, experts_ms, product_ms, products_of
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.step import StepShape


class RooflineModel(StepTimeModel):
    """Formulas over one engine's shape; decode steps are linear in the sum of all contexts."""

    source = "estimated"
    decode_is_monotone = True

    def __init__(
        self,
        shape: ModelShape,
        sheet: HardwareSheet,
        *,
        tensor_parallel: int = 1,
        quantisation: str | None = None,
        kv_element_bytes: float = 2.0,
        host: HostTime | None = None,
        kernel: SharedKernel | None = None,
        graph_sizes: tuple[int, ...] = (),
        per_sequence_ms: float = 0.0,
        factors: RooflineFactors | None = None,
        formats: ModuleFormats | None = None,
        is_link_stated: bool = False,
        name: str = "model",
    ) -> None:
        if shape.obstacle is not None:
            raise ConfigError(
                f"timing.kind roofline does not cover {name}: {shape.obstacle};"
                " use `timing: {kind: aiconfigurator}` or a profile"
            )
        factors = factors or factors_of(sheet)
        self._shape = shape
        self._sheet = sheet
        self._factors = factors
        self._ranks = tensor_parallel
        self._formats = formats or ModuleFormats.uniform(quantisation or shape.quantisation)
        self._products = products_of(shape, tensor_parallel, self._formats)
        self._output = Product(1, shape.hidden, shape.vocabulary / tensor_parallel, None)
        self._ring = Ring.of(sheet, tensor_parallel, factors, is_link_stated=is_link_stated)
        self.host = host or HostTime()
        self._graph_sizes = graph_sizes
        self._per_sequence_ms = per_sequence_ms
        self._pair_ms = self._attention_pair_ms(sheet)
        self._prefill_token_ms = self._prefill_token(sheet)
        latent_us = factors.latent_us if shape.latent_width else 0.0
        self._prefill_launch_ms = shape.layers * (factors.prefill_us + latent_us) / 1e3
        self._context_token_ms = self._context_read_ms(sheet, kv_element_bytes)
        self._mixed_context_ms = factors.mixed_context_ms(shape, kernel, sheet, tensor_parallel)
        self._decode_launch_ms = shape.layers * (factors.decode_us + latent_us) / 1e3
        kv_heads = -(-shape.kv_heads // tensor_parallel) if not shape.latent_width else 1
        self._decode_ms = shape.layers * kv_heads * factors.decode_head_us / 1e3
        self._linear: dict[int, float] = {}
        self._heads: dict[int, float] = {}
        self._set_texts(name, sheet)

    def _set_texts(self, name: str, sheet: HardwareSheet) -> None:
        self.description = f"roofline: {name} on {sheet.name}, tensor_parallel {self._ranks}"
        notes = ["estimated from the model's shape and a data sheet; no measurement of this engine"]
        if self._shape.has_windows:
            notes.append("sliding-window layers are counted as full attention: too slow if long")
        if self._ranks > sheet.linked_gpus:
            joined = "an NVLink domain" if sheet.nvlink_domain_gpus else "a node"
            notes.append(f"more GPUs than the {sheet.linked_gpus} of {joined}: links are slower")
        if self._ranks > 1 and not sheet.has_peer_access:
            notes.append(
                f"{sheet.name} has no peer-to-peer: traffic between GPUs passes the host, and the"
                " link's rate is an upper bound"
            )
        self.notes = tuple(notes)

    def _attention_pair_ms(self, sheet: HardwareSheet) -> float:
        """Prefill: time of one new token attending to one token, all layers, on one rank."""
        shape = self._shape
        key_width = shape.head_dim + (shape.latent_width - shape.latent_rank)
        value_width = shape.value_head_dim if shape.latent_width else shape.head_dim
        flops = 2 * shape.layers * shape.heads * (key_width + value_width) / self._ranks
        return flops / (sheet.bf16_tflops * 1e9 * self._factors.prefill_attention)

    def _prefill_token(self, sheet: HardwareSheet) -> float:
        """Prefill: moving one new token's queries, keys, values and results, all layers."""
        shape = self._shape
        kv_heads = -(-shape.kv_heads // self._ranks)
        width = (2 * shape.heads / self._ranks + 2 * kv_heads) * shape.head_dim
        moved = shape.layers * width * 2 * self._factors.prefill_widths
        return moved / (sheet.memory_gb_per_s * 1e6)

    def _context_read_ms(self, sheet: HardwareSheet, kv_element_bytes: float) -> float:
        """Decode: time per token of context, all layers, on one rank."""
        shape = self._shape
        size = shape.kv_bytes_per_token(self._ranks, kv_element_bytes)
        reading = size / (sheet.memory_gb_per_s * 1e6 * self._factors.decode_attention)
        if not shape.latent_width:
            return reading
        # Latent attention works on the compressed entries: many operations for each byte.
        width = shape.latent_width + shape.latent_rank
        flops = 2 * shape.layers * shape.heads * width / self._ranks
        return max(reading, flops / (sheet.bf16_tflops * 1e9 * self._factors.prefill_attention))

    def with_host(self, host: HostTime) -> "RooflineModel":
        """The same engine on another host."""
        other = copy(self)
        other.host = host
        return other

    def step_ms(self, step: StepShape) -> float:
        prefill_tokens, num_decodes = step.prefill_tokens, step.num_decodes
        tokens = prefill_tokens + num_decodes
        if tokens <= 0:
            return 0.0
        num_sequences = step.num_prefills + num_decodes
        total = self._linear.get(tokens) or self._linear_ms(tokens)
        total += self._heads.get(num_sequences) or self._head_ms(num_sequences)
        if prefill_tokens > 0:
            mean_new = prefill_tokens / step.num_prefills
            mean_cached = step.prefix_tokens / step.num_prefills
            total += prefill_tokens * (mean_cached + (mean_new + 1) / 2) * self._pair_ms
            total += prefill_tokens * self._prefill_token_ms + self._prefill_launch_ms
        if num_decodes > 0:
            per_token = self._context_token_ms
            if prefill_tokens > 0:
                per_token = max(per_token, self._mixed_context_ms)
            total += self._decode_launch_ms + num_decodes * self._decode_ms
            total += step.decode_context_tokens * per_token
        total += num_sequences * self._per_sequence_ms
        return self.host.step_ms(total, step.num_prefills, num_decodes)

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0:
            return 0.0
        first = self._first_ms(num_decodes, decode_context_tokens)
        growth = num_decodes * self._context_token_ms
        return self.host.run_ms(first, growth, num_steps, num_decodes)

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        device, hidden, exposed = self._parts_ms(num_decodes, decode_context_tokens)
        return np.where(num_decodes > 0, np.maximum(device, hidden) + exposed, 0.0)

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        """Up to where the device passes the host; all, where it never does."""
        device, hidden, _ = self._parts_ms(num_decodes, decode_context_tokens)
        growth = np.maximum(num_decodes * self._context_token_ms, 1e-300)
        below = np.minimum(np.ceil((hidden - device) / growth), num_steps)
        return np.where(below > 0, below, num_steps).astype(np.int64)

    def _parts_ms(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of each decode step: the device's time, the host's that it may hide, and the rest."""
        batches, inverse = np.unique(num_decodes, return_inverse=True)
        sizes = batches.tolist()
        bases = np.array([self._first_ms(b, 0) if b > 0 else 0.0 for b in sizes])
        hidden = np.array([self.host.hidden_ms(0, b) for b in sizes])
        exposed = np.array([self.host.exposed_ms(0, b) for b in sizes])
        device = bases[inverse] + decode_context_tokens * self._context_token_ms
        return device, hidden[inverse], exposed[inverse]

    def _first_ms(self, num_decodes: int, decode_context_tokens: int) -> float:
        """The device's time of a decode step."""
        base = self._linear.get(num_decodes) or self._linear_ms(num_decodes)
        base += self._heads.get(num_decodes) or self._head_ms(num_decodes)
        base += self._decode_launch_ms + num_decodes * (self._decode_ms + self._per_sequence_ms)
        return base + decode_context_tokens * self._context_token_ms

    def _linear_ms(self, tokens: int) -> float:
        """The device's time but for attention and the output, for a step of so many new tokens;
        remembered."""
        shape, num_tokens = self._shape, tokens
        tokens = padded_tokens(tokens, self._graph_sizes)
        total = self._elements_ms(tokens) + self._all_reduces_ms(tokens)
        for product in self._products:
            total += product.count * product_ms(product, tokens, self._sheet, self._factors)
        if shape.experts:
            total += shape.expert_layers * experts_ms(
                shape, tokens, self._ranks, self._formats.experts, self._sheet, self._factors
            )
        self._linear[num_tokens] = total
        return total

    def _head_ms(self, num_sequences: int) -> float:
        """The output's product, of one token a sequence; remembered."""
        ms = product_ms(self._output, num_sequences, self._sheet, self._factors)
        self._heads[num_sequences] = ms
        return ms

    def _elements_ms(self, tokens: int) -> float:
        """Norms (two a layer, of two widths read and two written), activations, the embedding."""
        shape, factors = self._shape, self._factors
        inner = shape.dense_layers * shape.intermediate
        inner += shape.expert_layers * shape.shared_intermediate
        widths = 8 * shape.layers * shape.hidden + 3 * inner / self._ranks
        moved = tokens * widths * 2 / factors.element_memory / (self._sheet.memory_gb_per_s * 1e6)
        launches = 1 + 2 * shape.layers + shape.dense_layers
        return launches * factors.element_us / 1e3 + moved

    def _all_reduces_ms(self, tokens: int) -> float:
        """One for the embedding and two a layer."""
        message_bytes = tokens * self._shape.hidden * 2
        return (2 * self._shape.layers + 1) * self._ring.all_reduce_ms(message_bytes)
