"""What lies around a step: the host, graphs, kernels that prompts and decodes share, the client."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing_support import engine, timing

from dynosim.build.timing import blind_timing, build_timing, sections_by_trust
from dynosim.silicon.attention_kernels import shared_kernel
from dynosim.silicon.hardware import hardware_sheet, known_hardware
from dynosim.silicon.host_times import host_of, host_time
from dynosim.testing import law
from dynosim.timing.graphs import vllm_graph_sizes
from dynosim.timing.host import HostTime
from dynosim.timing.mixed import CACHE_RATE, FLASH_ATTENTION_2, FLASH_ATTENTION_3
from dynosim.timing.roofline_factors import factors_of
from dynosim.timing.rows import ContextRow, raised_row
from dynosim.timing.step import StepShape

MODEL = "meta-llama/Llama-3.1-8B"


def test_a_synchronous_host_takes_its_time_after_the_device() -> None:
    host = HostTime(base_ms=1.5, per_sequence_ms=0.01, per_prompt_ms=0.2)
    assert host.step_ms(7.0, 2, 8) == pytest.approx(7.0 + 1.5 + 0.01 * 10 + 0.2 * 2)
    assert host.step_ms(0.1, 0, 1) == pytest.approx(0.1 + 1.51)


def test_an_asynchronous_host_shows_where_it_is_slower_and_by_what_nothing_hides() -> None:
    host = HostTime(base_ms=2.0, exposed_share=0.25)
    assert host.step_ms(7.0, 0, 8) == 7.0 + 0.5
    assert host.step_ms(0.1, 0, 8) == 2.0  # the device waits for the host


def test_kernels_outside_of_graphs_are_launched_while_the_device_runs() -> None:
    pieces = HostTime(base_ms=2.0, exposed_share=0.5, launch_ms=3.0)
    assert [pieces.step_ms(1.0, prompts, 8) for prompts in (0, 1)] == [2.0, 5.0]
    assert [pieces.step_ms(9.0, prompts, 8) for prompts in (0, 1)] == [10.0, 10.0]
    eager = HostTime(base_ms=2.0, exposed_share=0.5, launch_ms=3.0, launches_decodes=True)
    assert eager.step_ms(1.0, 0, 8) == 5.0
    assert eager.scaled(2.0).step_ms(1.0, 0, 8) == 10.0


@law(60)
@given(
    values=st.lists(st.floats(0, 20), min_size=2, max_size=6),
    floor=st.floats(0, 20),
    at=st.floats(0, 60),
    count=st.integers(0, 80),
)
def test_a_raised_row_is_the_larger_of_both_and_sums_as_it_answers(
    values: list[float], floor: float, at: float, count: int
) -> None:
    row = ContextRow([10.0 * i for i in range(len(values))], values)
    raised = raised_row(row, floor, 0.25)

    def naive(context: float) -> float:
        return max(row.at(context), floor) + 0.25

    inside = min(at, row.knots[-1])
    assert raised.at(inside) == pytest.approx(naive(inside), rel=1e-9, abs=1e-9)
    inside_count = min(count, int(row.knots[-1] - inside) + 1)
    total = sum(naive(inside + j) for j in range(inside_count))
    assert raised.run(inside, inside_count) == pytest.approx(total, rel=1e-9, abs=1e-9)
    assert list(raised.knots) == sorted(set(raised.knots))


def test_a_row_that_nothing_raises_stays_as_it_is() -> None:
    row = ContextRow([0.0, 1.0], [1.0, 2.0])
    assert raised_row(row, 0.0, 0.0) is row


def test_graph_sizes_by_version() -> None:
    assert vllm_graph_sizes(1024)[-3:] == (480, 496, 512)
    assert vllm_graph_sizes(1024, coarse=False)[-3:] == (496, 504, 512)
    assert vllm_graph_sizes(100) == vllm_graph_sizes(100, coarse=False)


@pytest.mark.parametrize(
    ("hardware", "kernel"),
    [
        ("h100_sxm", FLASH_ATTENTION_3),
        ("h200_sxm", FLASH_ATTENTION_3),
        ("a100_sxm", FLASH_ATTENTION_2),
        ("rtx_4090", FLASH_ATTENTION_2),
        ("rtx_pro_6000_server", FLASH_ATTENTION_2),
        ("b200_sxm", None),
        ("gb300", None),
        ("mi300x", None),
        ("t4", None),
    ],
)
def test_which_kernel_a_gpu_has(hardware: str, kernel: Any) -> None:
    assert shared_kernel(hardware, "vllm") is kernel
    assert shared_kernel(hardware, "sglang") is None


def test_every_gpu_has_a_host_with_an_interval_around_it() -> None:
    for hardware in known_hardware():
        host = host_of(hardware)
        for low, high in (host.step_interval, host.client_interval):
            assert 0 < low < 1 < high
        assert host.base_ms > 0 and 0 <= host.exposed_share < 1 and host.ingress_ms > 0
        assert host.label and host.source
    assert host_of("h100_sxm") is host_of("h200_sxm") is not host_of("a100_sxm")
    assert host_of("l20") is host_of("rtx_4090") is not host_of("h20")


def test_the_loop_decides_what_is_exposed_and_graphs_what_is_launched() -> None:
    host = host_of("h100_sxm")
    sync, pipelined, eager = (
        host_time(host, is_async=is_async, layers=32, has_graphs=has_graphs)
        for is_async, has_graphs in ((False, True), (True, True), (True, False))
    )
    assert sync.exposed_ms(0, 8) > pipelined.exposed_ms(0, 8) > 0
    assert sync.hidden_ms(0, 8) == 0 < pipelined.hidden_ms(0, 8)
    assert pipelined.hidden_ms(1, 8) > pipelined.hidden_ms(0, 8)
    assert eager.hidden_ms(0, 8) > pipelined.hidden_ms(1, 8)
    assert pipelined.interval == host.step_interval


def blind(hardware: str = "h100_sxm", **keys: Any) -> Any:
    stated = {name: keys.pop(name) for name in STATED if name in keys}
    section = timing("roofline", **(dict.fromkeys(STATED) | stated))
    return build_timing(
        section, model=MODEL, hardware=hardware, engine=engine(**keys), num_gpu_blocks=2
    )


STATED = ("step_overhead_ms", "ingress_ms", "egress_ms")
BARE: dict[str, Any] = dict.fromkeys(STATED, 0.0)


def test_a_blind_model_has_the_host_of_its_gpu_and_says_so() -> None:
    host = host_of("h100_sxm")
    model = blind()
    bare = blind(**BARE)
    step = StepShape.of_decodes(8, 8000)

    def exposed_ms(decodes: int) -> float:
        return host.exposed_share * (host.base_ms + decodes * host.per_sequence_ms)

    assert model.step_ms(step) - bare.step_ms(step) == pytest.approx(exposed_ms(8))
    assert (model.ingress_ms, model.egress_ms) == (host.ingress_ms, host.egress_ms)
    said = (
        f"plus {exposed_ms(32):.3g} ms of host per step (H100 class, {host.engine}, asynchronous)"
    )
    assert said in model.description
    assert f"client path {host.ingress_ms:g} + {host.egress_ms:g} ms (H100 class)" in (
        model.description
    )
    assert (bare.ingress_ms, bare.egress_ms) == (0.0, 0.0)
    assert bare.description.endswith("tensor_parallel 1")


@pytest.mark.parametrize(
    ("version", "stated", "loop"),
    [
        (None, None, "asynchronous"),
        ("0.13.0", None, "synchronous"),
        ("0.14.0", None, "asynchronous"),
        ("0.19.0", False, "synchronous"),
        ("0.13.0", True, "asynchronous"),
    ],
)
def test_the_version_tells_the_loop_unless_it_is_stated(
    version: str | None, stated: bool | None, loop: str
) -> None:
    model = blind(version=version, async_scheduling=stated)
    assert f"{host_of('h100_sxm').engine}, {loop})" in model.description


def test_what_is_stated_of_the_host_replaces_what_is_usual() -> None:
    model = blind(step_overhead_ms=2.5, ingress_ms=0.0, egress_ms=3.0)
    bare = blind(**BARE)
    for step in (StepShape.of_decodes(1, 10), StepShape(1, 10, 0, 3, 99)):
        assert model.step_ms(step) - bare.step_ms(step) == pytest.approx(2.5)
    assert (model.ingress_ms, model.egress_ms) == (0.0, 3.0)
    assert model.description.endswith("plus 2.5 ms per step, client path 0 + 3 ms")


def test_batches_are_padded_to_the_next_graph() -> None:
    model = blind(step_overhead_ms=0.0)
    at_65, at_72, at_73 = (model._linear_ms(n) for n in (65, 72, 73))
    assert at_65 == at_72 < at_73


def test_models_with_experts_are_not_padded() -> None:
    padded, plain = (
        build_timing(
            timing("roofline"),
            model="Qwen/Qwen3-30B-A3B",
            hardware="h100_sxm",
            engine=engine(),
            num_gpu_blocks=2,
            graph_sizes=sizes,
        )
        for sizes in (None, ())
    )
    step = StepShape.of_decodes(65, 72_000)
    assert padded.step_ms(step) == plain.step_ms(step)


def test_decodes_beside_prompts_cost_more_where_heads_are_not_packed() -> None:
    def surplus_ms(hardware: str, model: str) -> float:
        timed = build_timing(
            timing("roofline"),
            model=model,
            hardware=hardware,
            engine=engine(),
            num_gpu_blocks=2,
            graph_sizes=(),
        )
        longer, shorter = (
            timed.step_ms(StepShape(1, 64, 0, 64, contexts)) for contexts in (128_000, 64_000)
        )
        alone, less = (
            timed.step_ms(StepShape.of_decodes(64, contexts)) for contexts in (128_000, 64_000)
        )
        return ((longer - shorter) - (alone - less)) / 64_000

    # 4 and 8 query heads share keys, and each has a tile of 64 rows of its own that reads them.
    geforce = factors_of(hardware_sheet("rtx_4090"))
    memory_ms = 32 * 2 * 8 * 128 * 2 / (1008e6 * geforce.decode_attention)
    tiles_ms = 32 * 32 * 64 * 2 * 2 * 128 / (165e9 * geforce.prefill_attention)
    assert tiles_ms > 4 / CACHE_RATE * memory_ms > memory_ms
    assert surplus_ms("rtx_4090", MODEL) == pytest.approx(tiles_ms - memory_ms)
    wide = 2 * 32 * 8 * 128 * 2 / 1597e6
    once = 1 / factors_of(hardware_sheet("rtx_pro_6000_server")).decode_attention
    surplus = surplus_ms("rtx_pro_6000_server", MODEL)
    assert surplus == pytest.approx((4 / CACHE_RATE / 0.88 - once) * wide)
    twice = surplus_ms("rtx_pro_6000_server", "Qwen/Qwen3-32B")  # of 64 layers
    assert twice == pytest.approx((8 / CACHE_RATE / 0.88 - once) * 2 * wide)
    # Packed into one tile of 128 rows they wait for memory as decodes alone do.
    for hardware in ("h100_sxm", "b200_sxm"):
        assert surplus_ms(hardware, MODEL) == pytest.approx(0.0, abs=1e-12)


def test_other_kinds_have_the_client_path_that_is_stated() -> None:
    keys = {"prefill_ms": 5.0, "decode_ms": 1.0}
    plain = build_timing(
        timing("fixed", **keys, ingress_ms=None, egress_ms=None),
        model=None,
        hardware=None,
        engine=engine(),
        num_gpu_blocks=2,
    )
    assert (plain.ingress_ms, plain.egress_ms) == (0.0, 0.0)
    stated = build_timing(
        timing("fixed", **keys, ingress_ms=4.0, egress_ms=None),
        model=None,
        hardware=None,
        engine=engine(),
        num_gpu_blocks=2,
    )
    assert (stated.ingress_ms, stated.egress_ms) == (4.0, 0.0)


def test_a_blind_timing_is_the_first_section_that_covers_the_engine() -> None:
    sections = sections_by_trust()
    assert [section.kind for section in sections] == ["aiconfigurator", "roofline"]
    assert all(section.step_overhead_ms is None for section in sections)  # type: ignore[union-attr]
    found = blind_timing(model=MODEL, hardware="rtx_4090", engine=engine())
    assert found.source == "estimated"
    assert found.description == blind("rtx_4090").description
    counts = np.array([1, 8, 65])
    assert found.decode_step_ms_array(counts, 300 * counts) == pytest.approx(
        blind("rtx_4090").decode_step_ms_array(counts, 300 * counts)
    )
