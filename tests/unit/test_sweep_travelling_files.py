"""Which files go along with a winner's folder, and which are only named."""

import hashlib
import os
from pathlib import Path

import pytest

from dynosim.config.loading import check_run
from dynosim.config.schema import RunConfig
from dynosim.sweep import travelling_files as module
from dynosim.sweep.travelling_files import TravellingFile, travelling_files


def config_in(folder: Path, **keys: object) -> RunConfig:
    data = {
        "workload": {"trace": "traces/a.jsonl"},
        "engine": {"num_gpu_blocks": 9},
        "timing": {"kind": "polynomial"},
    }
    config = check_run({**data, **keys}, folder)
    assert isinstance(config, RunConfig), config
    return config


def by_key(files: list[TravellingFile]) -> dict[str, TravellingFile]:
    return {".".join(file.key): file for file in files}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "a.jsonl").write_text("{}\n")
    return tmp_path


def test_a_small_file_goes_along(project: Path) -> None:
    place = project / "results" / "agg" / "top1"
    (file,) = travelling_files(config_in(project), place)
    assert (file.name, file.num_bytes) == ("./inputs/a.jsonl", 3)
    assert file.sha256 == hashlib.sha256(b"{}\n").hexdigest()
    for name, write in file.writers().items():
        target = place / name
        target.parent.mkdir(parents=True)
        write(target)
    assert (place / file.name).read_text() == "{}\n"


def test_a_large_file_is_named_from_the_folder_and_not_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COPIED_BYTES_MAX", 2)
    place = project / "results" / "agg" / "top1"
    (file,) = travelling_files(config_in(project), place)
    assert file.name == "../../../traces/a.jsonl" and not file.copies and not file.writers()
    place.mkdir(parents=True)
    assert (place / file.name).samefile(project / "traces" / "a.jsonl")
    assert file.label.startswith(f"a.jsonl (3 B, SHA-256 {file.sha256[:16]})")


def test_files_of_one_name_do_not_meet(project: Path) -> None:
    for folder in ("x", "y"):
        (project / folder).mkdir()
        (project / folder / "l.jsonl").write_text(folder)
    lengths = [{"dist": "empirical", "trace": f"{name}/l.jsonl"} for name in ("x", "y")]
    synthetic = {"requests": 2, "isl": lengths[0], "osl": lengths[1], "rate_rps": 1}
    files = travelling_files(config_in(project, workload={"synthetic": synthetic}), project / "out")
    copies = {name: path for file in files for name, path in file.copies.items()}
    assert {path.read_text() for path in copies.values()} == {"x", "y"} and len(copies) == 2


def test_a_description_of_a_model_goes_along_and_weights_do_not(project: Path) -> None:
    model = project / "models" / "tiny"
    model.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "README.md"):
        (model / name).write_text("{}")
    place = project / "out"
    found = by_key(travelling_files(config_in(project, model="./models/tiny"), place))["model"]
    assert found.name == "./inputs/tiny"
    assert sorted(found.copies) == ["inputs/tiny/config.json", "inputs/tiny/tokenizer.json"]
    (model / "model.safetensors").write_text("weights")
    found = by_key(travelling_files(config_in(project, model="./models/tiny"), place))["model"]
    assert (found.name, found.copies) == ("../models/tiny", {})
    assert found.sha256 == hashlib.sha256(b"{}").hexdigest()


def test_one_file_of_a_model_is_one_file(project: Path) -> None:
    (project / "m").mkdir()
    (project / "m" / "config.json").write_text("{}")
    found = by_key(travelling_files(config_in(project, model="./m/config.json"), project / "o"))
    assert found["model"].name == "./inputs/m/config.json"


def test_names_of_models_and_missing_files_are_left_as_they_are(project: Path) -> None:
    os.remove(project / "traces" / "a.jsonl")
    assert travelling_files(config_in(project, model="Qwen/Qwen3-32B"), project / "out") == []
