"""Data sheets of accelerators, told a second time from what the chips are built of."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dynosim.errors import ConfigError
from dynosim.silicon.hardware import hardware_sheet, known_hardware
from dynosim.timing.sheets import HardwareSheet, derived_cuda_total_gib

GPUS: dict[str, tuple[int, int, float]] = {
    "t4": (40, 1024, 1.59),
    "v100_pcie": (80, 1024, 1.38),
    "v100_pcie_16gb": (80, 1024, 1.38),
    "v100_sxm": (80, 1024, 1.53),
    "v100_sxm_16gb": (80, 1024, 1.53),
    "a10": (72, 1024, 1.695),
    "a10g": (80, 512, 1.71),
    "a30": (56, 2048, 1.44),
    "a40": (84, 1024, 1.74),
    "a100_pcie": (108, 2048, 1.41),
    "a100_pcie_40gb": (108, 2048, 1.41),
    "a100_sxm": (108, 2048, 1.41),
    "a100_sxm_40gb": (108, 2048, 1.41),
    "a800_sxm": (108, 2048, 1.41),
    "l4": (58, 1024, 2.04),
    "l20": (92, 512, 2.52),
    "l40": (142, 512, 2.49),
    "l40s": (142, 1024, 2.52),
    "h100_pcie": (114, 4096, 1.62),
    "h100_nvl": (132, 4096, 1.545),
    "h100_sxm": (132, 4096, 1.83),
    "h200_sxm": (132, 4096, 1.83),
    "h800_sxm": (132, 4096, 1.83),
    "gh200": (132, 4096, 1.83),
    "gh200_144gb": (132, 4096, 1.83),
    "h20": (78, 1024, 1.83),
    "h20_141gb": (78, 1024, 1.83),
    "b200_sxm": (148, 8192, 1.85),
    "b300_sxm": (148, 8192, 1.85),
    "mi210": (104, 1024, 1.70),
    "mi300x": (304, 2048, 2.10),
    "rtx_3090": (82, 512, 1.695),
    "rtx_4080": (76, 512, 2.505),
    "rtx_4090": (128, 512, 2.52),
    "rtx_5080": (84, 512, 2.617),
    "rtx_5090": (170, 512, 2.407),
    "rtx_a5000": (64, 1024, 1.695),
    "rtx_a6000": (84, 1024, 1.80),
    "rtx_5000_ada": (100, 1024, 2.55),
    "rtx_6000_ada": (142, 1024, 2.505),
    "rtx_pro_6000_workstation": (188, 1024, 2.617),
    "rtx_pro_6000_server": (188, 1024, 2.43),
}
"""Multiprocessors, bf16 operations of each per clock with 32-bit accumulation (T4 and V100: fp16),
boost clock in GHz (RTX PRO 6000 Server: the highest that the card lists). Not here: GB200 and
GB300, whose clocks are not published."""

BUSES: dict[str, tuple[int, float]] = {
    "t4": (256, 10.0),
    "v100_pcie": (4096, 1.754),
    "v100_pcie_16gb": (4096, 1.754),
    "v100_sxm": (4096, 1.754),
    "v100_sxm_16gb": (4096, 1.754),
    "a10": (384, 12.5),
    "a10g": (384, 12.5),
    "a30": (3072, 2.43),
    "a40": (384, 14.5),
    "a100_pcie": (5120, 3.024),
    "a100_pcie_40gb": (5120, 2.43),
    "a100_sxm": (5120, 3.186),
    "a100_sxm_40gb": (5120, 2.43),
    "a800_sxm": (5120, 3.186),
    "l4": (192, 12.5),
    "l20": (384, 18.0),
    "l40": (384, 18.0),
    "l40s": (384, 18.0),
    "h100_pcie": (5120, 3.125),
    "h100_sxm": (5120, 5.234),
    "h800_sxm": (5120, 5.234),
    "h100_nvl": (6144, 5.128),
    "h20_141gb": (6144, 6.25),
    "h200_sxm": (6144, 6.25),
    "b200_sxm": (7680, 7.992),
    "b300_sxm": (7680, 7.992),
    "mi210": (4096, 3.2),
    "mi300x": (8192, 5.2),
    "rtx_3090": (384, 19.5),
    "rtx_4080": (256, 22.4),
    "rtx_4090": (384, 21.0),
    "rtx_5080": (256, 30.0),
    "rtx_5090": (512, 28.0),
    "rtx_a5000": (384, 16.0),
    "rtx_a6000": (384, 16.0),
    "rtx_5000_ada": (256, 18.0),
    "rtx_6000_ada": (384, 20.0),
    "rtx_pro_6000_workstation": (512, 28.0),
    "rtx_pro_6000_server": (512, 25.0),
}
"""Width of the memory bus in bits, and what a pin carries in Gb/s."""

DRIVER_MIB: dict[int, list[str]] = {
    15_360: ["t4"],
    16_303: ["rtx_5080"],
    16_384: ["v100_pcie_16gb", "v100_sxm_16gb"],
    16_376: ["rtx_4080"],
    23_028: ["a10", "a10g", "l4"],
    24_564: ["a30", "rtx_3090", "rtx_4090", "rtx_a5000"],
    32_607: ["rtx_5090"],
    32_760: ["rtx_5000_ada"],
    32_768: ["v100_pcie", "v100_sxm"],
    40_960: ["a100_pcie_40gb", "a100_sxm_40gb"],
    46_068: ["a40", "l20", "l40", "l40s"],
    49_140: ["rtx_a6000", "rtx_6000_ada"],
    65_520: ["mi210"],
    81_559: ["h100_pcie", "h100_sxm", "h800_sxm"],
    81_920: ["a100_pcie", "a100_sxm", "a800_sxm"],
    95_830: ["h100_nvl"],
    97_871: ["h20", "gh200"],
    97_887: ["rtx_pro_6000_workstation", "rtx_pro_6000_server"],
    143_771: ["h200_sxm", "h20_141gb"],
    146_831: ["gh200_144gb"],
    183_359: ["b200_sxm"],
    189_471: ["gb200"],
    196_592: ["mi300x"],
    275_040: ["b300_sxm"],
    284_208: ["gb300"],
}
"""As nvidia-smi and rocm-smi list it."""

LINKS_GB_PER_S: dict[int, list[str]] = {
    16: ["t4", "v100_pcie", "v100_pcie_16gb"],  # PCIe gen 3
    32: [  # PCIe gen 4
        "a10", "a10g", "a30", "a40", "a100_pcie", "a100_pcie_40gb", "l4", "l20", "l40",
        "l40s", "rtx_3090", "rtx_4080", "rtx_4090", "rtx_a5000", "rtx_a6000", "rtx_5000_ada",
        "rtx_6000_ada", "mi210",
    ],
    64: [  # PCIe gen 5
        "h100_pcie", "rtx_5080", "rtx_5090", "rtx_pro_6000_workstation", "rtx_pro_6000_server",
    ],
    150: ["v100_sxm", "v100_sxm_16gb"],  # NVLink 2
    200: ["a800_sxm", "h800_sxm"],  # for export
    300: ["a100_sxm", "a100_sxm_40gb", "h100_nvl"],  # NVLink 3, and three bridges of NVLink 4
    448: ["mi300x"],  # seven Infinity Fabric links
    450: ["h20", "h20_141gb", "h100_sxm", "h200_sxm", "gh200", "gh200_144gb"],  # NVLink 4
    900: ["b200_sxm", "b300_sxm", "gb200", "gb300"],  # NVLink 5
}  # fmt: skip

WITHOUT_FP8 = {
    "t4", "v100_pcie", "v100_sxm", "mi210", "a10", "a10g", "a30", "a40", "a100_pcie", "a100_sxm",
    "a800_sxm", "rtx_3090", "rtx_a5000", "rtx_a6000",
    "v100_pcie_16gb", "v100_sxm_16gb", "a100_pcie_40gb", "a100_sxm_40gb",
}  # fmt: skip
"""Turing, Volta, Ampere and CDNA 2."""


@pytest.mark.parametrize("name", GPUS)
def test_rates_are_those_of_the_multiprocessors(name: str) -> None:
    processors, per_clock, clock_ghz = GPUS[name]
    tflops = processors * per_clock * clock_ghz / 1e3
    # Printed rates are rounded, the L40S's the most.
    assert hardware_sheet(name).bf16_tflops == pytest.approx(tflops, rel=0.015)


def test_rates_without_a_published_clock_are_the_printed_ones() -> None:
    others = sorted(set(known_hardware()) - set(GPUS))
    assert {name: hardware_sheet(name).bf16_tflops for name in others} == {
        "gb200": 2500,
        "gb300": 2500,
    }


@pytest.mark.parametrize("name", known_hardware())
def test_fp8_doubles_the_rate_where_tensor_cores_have_it(name: str) -> None:
    sheet = hardware_sheet(name)
    factor = 1 if name in WITHOUT_FP8 else 2
    assert sheet.fp8_tflops / sheet.bf16_tflops == pytest.approx(factor, rel=0.015)  # rounded


HALF_RATE_WITH_FLOATS = ("a10g", "rtx_3090", "rtx_4080", "rtx_4090", "rtx_5080", "rtx_5090", "l20")
"""Tensor cores with 32-bit accumulation at half rate; integers and FP4 are not halved."""


@pytest.mark.parametrize("name", known_hardware())
def test_int8_doubles_the_rate_of_bf16_where_tensor_cores_have_it(name: str) -> None:
    sheet = hardware_sheet(name)
    if name.startswith("v100"):
        assert sheet.int8_tops is None
    elif name in ("b300_sxm", "gb300"):  # hardly any are left
        assert sheet.int8_tops is not None and sheet.int8_tops < sheet.bf16_tflops / 10
    else:
        is_halved = name.startswith("rtx") and name in HALF_RATE_WITH_FLOATS
        factor = 4 if is_halved else 2
        factor = 1 if name == "mi210" else factor
        assert sheet.int8_tops == pytest.approx(factor * sheet.bf16_tflops, rel=0.015)


@pytest.mark.parametrize("name", known_hardware())
def test_fp4_comes_with_blackwell(name: str) -> None:
    sheet = hardware_sheet(name)
    if not name.startswith(("b200", "b300", "gb", "rtx_50", "rtx_pro")) or "ada" in name:
        assert sheet.fp4_tflops is None
        return
    factor = 3 if name in ("b300_sxm", "gb300") else 4 if name.startswith("rtx_50") else 2
    assert sheet.fp4_tflops == pytest.approx(factor * sheet.fp8_tflops, rel=0.005)


def test_weights_compute_in_what_their_kernels_do() -> None:
    rates = {
        name: [hardware_sheet(name).matrix_tflops(one) for one in (
            None, "fp8", "int8", "w8a16", "awq", "gptq", "mxfp4", "nvfp4", "w4afp8")]
        for name in ("a100_sxm", "h100_sxm", "b200_sxm", "v100_sxm", "b300_sxm")
    }  # fmt: skip
    assert rates == {
        "a100_sxm": [312, 312, 624, 312, 312, 312, 312, 312, 312],
        "h100_sxm": [989, 1979, 1979, 989, 989, 989, 989, 989, 1979],
        "b200_sxm": [2250, 4500, 4500, 2250, 2250, 2250, 2250, 9000, 4500],
        "v100_sxm": [125, 125, 125, 125, 125, 125, 125, 125, 125],
        "b300_sxm": [2250, 4500, 153.5, 2250, 2250, 2250, 2250, 13500, 4500],
    }


@pytest.mark.parametrize("name", BUSES)
def test_bandwidth_is_that_of_the_memory_bus(name: str) -> None:
    bits, gb_per_s = BUSES[name]
    # The H100's is printed in two digits: 3.35 TB/s.
    assert hardware_sheet(name).memory_gb_per_s == pytest.approx(bits / 8 * gb_per_s, rel=0.005)


def test_bandwidth_of_other_memories_is_the_printed_one() -> None:
    found = {name: hardware_sheet(name).memory_gb_per_s for name in known_hardware()}
    others = {name: found[name] for name in found if name not in BUSES}
    # Cards of GB200 list buses of 7936 and of 8064 bits: less than 1 % around the printed 8 TB/s.
    printed = {"h20": 4000, "gh200": 4000, "gh200_144gb": 4900, "gb200": 8000, "gb300": 8000}
    assert others == printed


def test_memory_is_what_the_driver_reports() -> None:
    found_mib = {name: 1024 * hardware_sheet(name).memory_gib for name in known_hardware()}
    listed_mib = {name: float(mib) for mib, names in DRIVER_MIB.items() for name in names}
    # Sheets are rounded to a tenth of a GiB.
    assert found_mib == pytest.approx(listed_mib, abs=0.1 * 1024)


@pytest.mark.parametrize("name", [name for name in known_hardware() if not name.startswith("mi")])
def test_cuda_reports_a_little_less_than_the_driver(name: str) -> None:
    sheet = hardware_sheet(name)
    assert 0.2 <= sheet.memory_gib - sheet.cuda_total_gib <= 1.2


def test_links_are_those_of_their_generation() -> None:
    found = {name: hardware_sheet(name).link_gb_per_s for name in known_hardware()}
    assert found == {name: rate for rate, names in LINKS_GB_PER_S.items() for name in names}


def test_a_link_may_depend_on_how_many_gpus_take_part() -> None:
    def links(name: str) -> list[float]:
        return [hardware_sheet(name).link_gb_per_s_of(gpus) for gpus in (1, 2, 3, 4, 8, 16)]

    assert links("h100_sxm") == [450] * 6
    assert links("h100_nvl") == [300, 300, 64, 64, 64, 64]  # a bridge joins two
    assert links("mi300x") == [64, 64, 128, 192, 448, 448]  # one link to each other GPU
    for name in known_hardware():
        sheet = hardware_sheet(name)
        most = max(sheet.link_gb_per_s_of(gpus) for gpus in range(1, 9))
        assert most == sheet.link_gb_per_s


def test_nodes_are_of_eight_but_for_those_of_grace() -> None:
    found = {
        name: (hardware_sheet(name).gpus_per_node, hardware_sheet(name).linked_gpus)
        for name in known_hardware()
    }
    others = {name: sizes for name, sizes in found.items() if sizes != (8, 8)}
    assert others == {
        "gh200": (1, 1),
        "gh200_144gb": (1, 1),
        "gb200": (4, 72),
        "gb300": (4, 72),
    }


def test_geforce_has_no_peer_access() -> None:
    found = [name for name in known_hardware() if not hardware_sheet(name).has_peer_access]
    assert found == ["rtx_3090", "rtx_4080", "rtx_4090", "rtx_5080", "rtx_5090"]


def test_every_sheet_names_its_source() -> None:
    assert all(hardware_sheet(name).source for name in known_hardware())


def test_a_sheet_of_the_users_own_is_read_field_by_field(tmp_path: Path) -> None:
    path = tmp_path / "my_gpu.yaml"
    path.write_text(
        "memory_gib: 100\nmemory_gb_per_s: 3000\nbf16_tflops: 500\nfp8_tflops: 1000.5\n"
        "link_gb_per_s: 300\n"
    )
    expected: dict[str, Any] = {
        "name": "my_gpu",
        "memory_gib": 100,
        "cuda_total_gib": 99.5,
        "memory_gb_per_s": 3000,
        "bf16_tflops": 500,
        "fp8_tflops": 1000.5,
        "link_gb_per_s": 300,
        "int8_tops": None,
        "fp4_tflops": None,
        "gpus_per_node": 8,
        "nvlink_domain_gpus": None,
        "links_by_gpus": (),
        "has_peer_access": True,
        "tdp_w": None,
        "idle_w": None,
        "source": "",
    }
    assert asdict(hardware_sheet(str(path))) == expected
    path.write_text(path.read_text() + "name: mine\ngpus_per_node: 4\n")
    assert asdict(hardware_sheet(str(path))) == expected | {"name": "mine", "gpus_per_node": 4}
    more = "cuda_total_gib: 97\nint8_tops: 900\nnvlink_domain_gpus: 16\nsource: bench\n"
    path.write_text(path.read_text() + more + "tdp_w: null\n")
    sheet = hardware_sheet(str(path))
    assert (sheet.cuda_total_gib, sheet.int8_tops, sheet.source) == (97, 900, "bench")
    assert sheet.linked_gpus == 16
    upper = tmp_path / "other.YML"
    upper.write_text(path.read_text())
    assert hardware_sheet(str(upper)).name == "mine"


def test_a_text_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text("".join(f"{name}: 7\n" for name in FIELDS) + "source: 7\n")
    with pytest.raises(ConfigError, match="source: expected a text, got 7"):
        hardware_sheet(str(path))


def test_small_cards_keep_most_of_their_memory() -> None:
    assert [derived_cuda_total_gib(size) for size in (8, 25, 100)] == [7.84, 24.5, 99.5]


FIELDS = ("memory_gib", "memory_gb_per_s", "bf16_tflops", "fp8_tflops", "link_gb_per_s")


@pytest.mark.parametrize("field", [*FIELDS, "gpus_per_node"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "true", "1000000000.0", "[1]", "null"])
def test_a_figure_that_is_none_is_named(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "gpu.yaml"
    figures = dict.fromkeys(FIELDS, "7") | {field: value}
    path.write_text("".join(f"{name}: {figure}\n" for name, figure in figures.items()))
    with pytest.raises(ConfigError, match=f"{field}: expected a number above 0"):
        hardware_sheet(str(path))


@pytest.mark.parametrize("field", FIELDS)
def test_a_figure_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text("".join(f"{name}: 7\n" for name in FIELDS if name != field))
    with pytest.raises(ConfigError, match=f"{field}: expected a number above 0, got None"):
        hardware_sheet(str(path))


def test_memory_in_bytes_is_in_units_of_1024() -> None:
    sheet = HardwareSheet(
        name="x",
        memory_gib=1.5,
        cuda_total_gib=1.4,
        memory_gb_per_s=1,
        bf16_tflops=1,
        fp8_tflops=1,
        link_gb_per_s=1,
    )
    assert sheet.memory_bytes == 1.5 * 1024 * 1024 * 1024
