"""Which version's tables stand for the version in use, and the folder that the library reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.errors import ConfigError
from dynosim.silicon import table_versions as module
from dynosim.silicon.table_versions import (
    choose,
    known_versions,
    nearest,
    neighbours_of,
    newest_version,
    order,
    other_neighbour,
    others_by_distance,
    systems_folder,
    version_in_use,
    version_problem,
)

GEMM = ("gemm", "gemm_perf.parquet")
REDUCE = ("comm", "custom_allreduce_perf.parquet")
ATTENTION = ("attention", "generation_attention_perf.parquet")


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library with one GPU: all-reduces of three versions, the rest of one."""
    data = tmp_path / "systems" / "data" / "my_gpu"
    for (family, file), versions in {
        GEMM: ["0.24.0"],
        ATTENTION: ["0.24.0"],
        REDUCE: ["0.14.0", "0.19.0", "0.24.0"],
    }.items():
        for version in versions:
            folder = data / family / "vllm" / version
            folder.mkdir(parents=True)
            (folder / file).write_text(version)
    (data / "comm" / "nccl" / "2.27").mkdir(parents=True)
    (data / "gemm" / "sglang" / "0.5.14").mkdir(parents=True)
    (tmp_path / "systems" / "my_gpu.yaml").write_text("data_dir: data/my_gpu\n")
    (tmp_path / "systems" / "query_versions.yaml").write_text("schema_version: 1\n")
    monkeypatch.setattr(module, "core_folder", lambda: tmp_path)
    module.table_versions.cache_clear()
    yield tmp_path
    module.table_versions.cache_clear()


def test_versions_are_ordered_as_they_came_out() -> None:
    versions = ["0.5.6.post2", "1.3.0rc3", "1.3.0rc20", "1.3.0", "0.14.0", "0.9.1", "0.24"]
    assert sorted(versions, key=order) == [
        "0.5.6.post2", "0.9.1", "0.14.0", "0.24", "1.3.0rc3", "1.3.0rc20", "1.3.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "reduce", "other"),
    [
        ("0.24.0", "0.24.0", None),
        ("0.19.0", "0.19.0", None),
        ("0.15.1", "0.14.0", "0.19.0"),  # the newest that is not newer; the neighbour above
        ("0.21.0", "0.19.0", "0.24.0"),
        ("0.13.0", "0.14.0", None),  # nothing older: the oldest
        ("0.30.0", "0.24.0", None),
    ],
)
def test_a_table_is_of_the_version_in_use_or_its_nearest(
    tables: Path, wanted: str, reduce: str, other: str | None
) -> None:
    choice = choose("my_gpu", "vllm", wanted)
    assert choice.versions[REDUCE] == reduce
    assert choice.versions[GEMM] == "0.24.0"
    neighbours = neighbours_of(choice, "my_gpu", "vllm")
    assert (None if neighbours is None else neighbours.versions[REDUCE]) == other
    if neighbours is not None:
        assert neighbours.versions[GEMM] == "0.24.0"


VERSIONS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 3)).map(lambda v: f"0.{v[0]}.{v[1]}"),
    min_size=1,
    unique=True,
)


@given(VERSIONS, st.tuples(st.integers(0, 30), st.integers(0, 3)))
def test_no_other_version_is_nearer(versions: list[str], number: tuple[int, int]) -> None:
    wanted = f"0.{number[0]}.{number[1]}"
    known = tuple(sorted(versions, key=order))
    chosen = nearest(known, wanted)
    below = [one for one in known if order(one) <= order(wanted)]
    assert chosen == (max(below, key=order) if below else min(known, key=order))
    other = other_neighbour(known, wanted)
    if other is not None:
        assert order(chosen) < order(wanted) < order(other)
        assert not [one for one in known if order(wanted) < order(one) < order(other)]


def test_without_a_version_it_is_the_newest_that_was_measured_as_a_whole(tables: Path) -> None:
    newer = tables / "systems/data/my_gpu/comm/vllm/0.27.0"
    newer.mkdir()
    (newer / REDUCE[1]).write_text("0.27.0")
    assert newest_version("my_gpu", "vllm") == "0.24.0"
    assert version_in_use("my_gpu", "vllm", None, key="engine.version") == "0.24.0"
    assert known_versions("my_gpu", "vllm") == ["0.14.0", "0.19.0", "0.24.0", "0.27.0"]
    with pytest.raises(ConfigError, match="no measurements of trtllm on my_gpu"):
        version_in_use("my_gpu", "trtllm", None, key="engine.version")


@pytest.mark.parametrize("version", ["0.6.0", "0.13", "0.15.1", "0.19.0", "0.32.0", "0.33.1rc1"])
def test_versions_that_were_not_measured_are_served(tables: Path, version: str) -> None:
    assert version_in_use("my_gpu", "vllm", version, key="engine.version") == version


@pytest.mark.parametrize("version", ["", "new", "0", "19", "0.19.", "0.5.9", "0.99.0", "1.0.0"])
def test_versions_that_cannot_be_are_refused_with_their_neighbours(
    tables: Path, version: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        version_in_use("my_gpu", "vllm", version, key="engine.version")
    assert str(caught.value).startswith("engine.version: ")
    assert "0.14.0, 0.19.0, 0.24.0" in str(caught.value)


def test_other_engines_have_versions_of_their_own() -> None:
    assert version_problem("1.3.0rc20", "trtllm") is None
    assert version_problem("new", "trtllm") is not None


def test_the_library_is_given_the_chosen_tables_and_nothing_else(tables: Path) -> None:
    choice = choose("my_gpu", "vllm", "0.19.0")
    assert choice.label == "0.24.0"  # attention's: the library picks among its kernels by it
    with systems_folder("my_gpu", "vllm", choice) as root:
        data = root / "data" / "my_gpu"
        own = {
            path.relative_to(data).as_posix(): path.read_text() for path in data.rglob("vllm/*/*")
        }
        assert own == {
            "gemm/vllm/0.24.0/gemm_perf.parquet": "0.24.0",
            "attention/vllm/0.24.0/generation_attention_perf.parquet": "0.24.0",
            "comm/vllm/0.24.0/custom_allreduce_perf.parquet": "0.19.0",
        }
        assert (data / "comm" / "nccl" / "2.27").is_dir()
        assert not (data / "gemm" / "sglang").exists()
        assert {path.name for path in root.glob("*.yaml")} == {"my_gpu.yaml"}
    assert not root.exists()
    with systems_folder("my_gpu", "vllm", choice, with_others=True) as root:
        assert (root / "data/my_gpu/gemm/sglang/0.5.14").is_dir()


def test_where_a_table_lacks_something_older_ones_come_first(tables: Path) -> None:
    assert others_by_distance("my_gpu", "vllm", REDUCE, "0.19.0") == ["0.14.0", "0.24.0"]
    assert others_by_distance("my_gpu", "vllm", REDUCE, "0.14.0") == ["0.19.0", "0.24.0"]
    assert others_by_distance("my_gpu", "vllm", GEMM, "0.24.0") == []
