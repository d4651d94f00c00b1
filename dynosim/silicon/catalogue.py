"""Models by name, without network: the Hugging Face configs that aiconfigurator-core ships.

The package is found, never imported (its import takes seconds). Common models that it lacks are in
`shapes`. A path of a `config.json`, or of the folder that holds one, names a model as well.
"""

import difflib
import hashlib
import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.files.user_text import parse_json
from dynosim.silicon.shapes import SAME_SHAPES, common_config, common_models, own_values
from dynosim.timing.architecture import ModelEntry

_SUFFIX = "_config.json"
_QUANTISATION_SUFFIX = "_hf_quant_config.json"

_SAME_ARCHITECTURE = {
    "meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Meta-Llama-3.1-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-405B": "meta-llama/Meta-Llama-3.1-405B",
    "meta-llama/Llama-3.1-405B-Instruct": "meta-llama/Meta-Llama-3.1-405B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
}
"""Names whose published config has the same shapes, and the same context, as the packaged one."""


@cache
def core_folder() -> Path | None:
    """Where aiconfigurator-core is installed; None if it is not."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def core_version() -> str:
    """Version of the installed aiconfigurator-core; "" if it is not installed."""
    folder = core_folder()
    if folder is None:
        return ""
    for entry in sorted(folder.parent.glob("aiconfigurator_core-*.dist-info")):
        return entry.name.removeprefix("aiconfigurator_core-").removesuffix(".dist-info")
    from importlib import metadata

    return metadata.version("aiconfigurator-core")


def known_models() -> list[str]:
    """Names that need no path, sorted."""
    folder = core_folder()
    if folder is None:
        return []
    files = (folder / "model_configs").glob(f"*{_SUFFIX}")
    return sorted(
        file.name.removesuffix(_SUFFIX).replace("--", "/", 1)
        for file in files
        if not file.name.endswith(_QUANTISATION_SUFFIX)
    )


def model_entry(model: str) -> ModelEntry:
    """The model of that name or path.

    Raises: ConfigError with the nearest names, or with what is wrong with the file.
    """
    folder = core_folder()
    same = SAME_SHAPES.get(model)
    name = same.base if same else _SAME_ARCHITECTURE.get(model, model)
    own = own_values(model)
    if folder is not None and name.count("/") == 1:
        stem = name.replace("/", "--")
        path = folder / "model_configs" / f"{stem}{_SUFFIX}"
        if path.is_file():
            quantisation = path.with_name(f"{stem}{_QUANTISATION_SUFFIX}")
            # A context changes no time and no table; another vocabulary does.
            entry = _entry(name, path, quantisation, is_packaged="vocab_size" not in own)
            return replace(entry, config=entry.config | own)
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        quantisation = path.with_name("hf_quant_config.json")
        return _entry(model, path, quantisation, is_packaged=False)
    config = common_config(name)
    if config is not None:
        return ModelEntry(name, config | own, None, name, is_packaged=False)
    raise ConfigError(_unknown(model))


def model_fingerprint(entry: ModelEntry) -> str:
    """Equal for equal files: what a cache key needs to know of the model."""
    if entry.is_packaged:
        return entry.name
    text = json.dumps([entry.config, entry.quantisation], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(name: str, path: Path, quantisation: Path, *, is_packaged: bool) -> ModelEntry:
    quantisation_data = _read_object(quantisation) if quantisation.is_file() else None
    return ModelEntry(name, _read_object(path), quantisation_data, str(path), is_packaged)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path}: not readable JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"model: {path}: expected a JSON object, as Hugging Face writes it")
    return data


def _unknown(model: str) -> str:
    names = known_models()
    others = (*_SAME_ARCHITECTURE, *SAME_SHAPES, *common_models())
    by_lower = {name.lower(): name for name in (*names, *others)}
    by_lower |= {name.split("/")[-1].lower(): name for name in names}
    nearest = difflib.get_close_matches(model.lower(), by_lower, n=4)
    unique = list(dict.fromkeys(by_lower[match] for match in nearest))[:3]
    if unique:
        hint = f"did you mean {' or '.join(unique)}?"
    elif names:
        hint = f"`dynosim support` lists the {len(names)} known names."
    else:
        hint = "names are known once aiconfigurator-core is installed."
    return (
        f"model: unknown {model!r}; {hint} Or give the path of a Hugging Face config.json"
        " or of its folder."
    )
