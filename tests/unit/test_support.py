"""What can be timed how: every status of the matrix, and what formulas make up for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dynosim.errors import ConfigError
from dynosim.silicon import support as support_module
from dynosim.silicon.catalogue import known_models
from dynosim.silicon.hardware import known_hardware
from dynosim.silicon.support import ENGINES, SupportRow, support

HEADER = "HuggingFaceID,Architecture,System,Backend,Version,Mode,Status,ErrMsg,Command,Source\n"
QWEN, SPARSE, RECURRENT = "Qwen/Qwen3-32B", "zai-org/GLM-5", "Qwen/Qwen3.5-27B"


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Rows of the support matrix of a GPU that the library has none of."""
    rows: list[str] = []
    path = tmp_path / "systems" / "support_matrix" / "rtx_4090.csv"
    path.parent.mkdir(parents=True)

    class Folder:
        """Writes the rows when it is asked for."""

        def __call__(self) -> Path:
            path.write_text(HEADER + "".join(rows))
            return tmp_path

    monkeypatch.setattr(support_module, "core_folder", Folder())
    support_module._matrix.cache_clear()
    yield rows
    support_module._matrix.cache_clear()


def line(model: str, status: str, *, version: str = "1", mode: str = "agg", error: str = "") -> str:
    return f'{model},A,rtx_4090,vllm,{version},{mode},{status},"{error}",c,s\n'


FORMULAS = "no measurements; formulas from the model's shape and a data sheet"
NO_FORMULAS = "no measurements, and the formulas do not cover it: "


@pytest.mark.parametrize(
    ("model", "rows", "source", "kind", "version", "note"),
    [
        (QWEN, [line(QWEN, "PASS", version="0.9")], "measured", "aiconfigurator", "0.9",
         "silicon tables"),
        (QWEN, [line(QWEN, "HYBRID_PASS")], "derived", "aiconfigurator", "1",
         "silicon tables, gaps filled from other profiles"),
        (QWEN, [line(QWEN, "HW_INCOMPATIBLE", error="a\nno fp8 here\n")], "none", None, "",
         "no fp8 here"),
        (QWEN, [line(QWEN, "HW_INCOMPATIBLE")], "none", None, "", ""),
        (QWEN, [line(QWEN, "FAIL", error="x")], "estimated", "roofline", "", FORMULAS),
        (QWEN, [], "estimated", "roofline", "", FORMULAS),
        (QWEN, [line(SPARSE, "PASS")], "estimated", "roofline", "", FORMULAS),
        (QWEN, [line(QWEN, "PASS", mode="disagg")], "estimated", "roofline", "", FORMULAS),
        (SPARSE, [], "none", None, "", NO_FORMULAS + "its attention is sparse"),
        (RECURRENT, [line(RECURRENT, "FAIL")], "none", None, "",
         NO_FORMULAS + "it has recurrent layers"),
        (SPARSE, [line(SPARSE, "PASS")], "measured", "aiconfigurator", "1", "silicon tables"),
        (QWEN, [line(QWEN, "FAIL"), line(QWEN, "PASS", version="2")], "estimated", "roofline", "",
         FORMULAS),
        (QWEN, [line(QWEN, "PASS"), line(QWEN, "FAIL", version="2")], "measured",
         "aiconfigurator", "1", "silicon tables"),
    ],
)  # fmt: skip
def test_the_best_way_to_time_one_engine(
    matrix: list[str],
    model: str,
    rows: list[str],
    source: str,
    kind: str | None,
    version: str,
    note: str,
) -> None:
    matrix += rows
    found = support(model, "rtx_4090", "vllm")
    assert found == [SupportRow(model, "rtx_4090", "vllm", source, kind, version, note)]


def test_an_engine_has_rows_of_its_own(matrix: list[str]) -> None:
    matrix.append(line(QWEN, "PASS"))
    found = support(QWEN, "rtx_4090")
    assert [(row.engine, row.source) for row in found] == [
        ("vllm", "measured"),
        ("sglang", "estimated"),
        ("trtllm", "estimated"),
    ]


def test_everything_known_is_listed_in_order() -> None:
    rows = [(row.model, row.hardware, row.engine) for row in support()]
    assert rows == [
        (model, system, kind)
        for model in known_models()
        for system in known_hardware()
        for kind in ENGINES
    ]


def test_known_engines_are_told_from_what_was_measured_with_them() -> None:
    (row,) = support(QWEN, "h200_sxm", "vllm")
    assert (row.source, row.kind, row.note) == ("measured", "aiconfigurator", "silicon tables")
    assert row.engine_version
    (row,) = support(QWEN, "l4", "vllm")
    assert (row.source, row.kind, row.engine_version) == ("estimated", "roofline", "")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="engine: unknown 'tgi'; known: vllm, sglang, trtllm"):
        support(QWEN, "l4", "tgi")
    with pytest.raises(ConfigError, match="did you mean h200_sxm"):
        support(QWEN, "h200")
    with pytest.raises(ConfigError, match="model: unknown 'Qwen/Qwen3-33B'"):
        support("Qwen/Qwen3-33B")
