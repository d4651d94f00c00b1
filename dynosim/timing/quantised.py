"""Which modules of a checkpoint are stored in its number format, and which stay in 16 bits.

Published checkpoints say so in four dialects: compressed-tensors (`targets` of its groups and an
`ignore` list, with `re:` for regular expressions), the fp8 of Hugging Face and AWQ
(`modules_to_not_convert`), ModelOpt (`exclude_modules` or `ignore` with wildcards, and
`quantized_layers` where formats are mixed). Lists name modules with or without what precedes the
layers, one by one, by a parent, or by a part of a name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from dynosim.timing.architecture import ModelEntry, compressed_format, stated_quantisation

_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
"""What precedes `layers` and `lm_head` in published names."""

_TOWERS = ("vision", "visual", "audio")
_LAYER = re.compile(r"layers\.(\d+)")
_CLASSES = ("Linear", "FusedMoE", "MoE")
"""Targets that name a class of module instead of modules."""


class Modules:
    """A list of patterns of module names."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._of_layer: dict[int, list[str]] = {}
        self._regexes: list[re.Pattern[str]] = []
        self._wildcards: list[str] = []
        self._parts: list[str] = []
        self._known: dict[str, bool] = {}
        for pattern in patterns:
            self._add(pattern)

    def _add(self, pattern: str) -> None:
        layer = _LAYER.search(pattern)
        if pattern.startswith("re:"):
            self._regexes.append(re.compile(pattern.removeprefix("re:")))
        elif layer is not None:
            if not any(tower in pattern[: layer.start()] for tower in _TOWERS):
                rest = pattern[layer.end() :].removeprefix(".")
                self._of_layer.setdefault(int(layer[1]), []).append(rest)
        elif "*" in pattern:
            self._wildcards.append(pattern)
        else:
            self._parts.append(f".{pattern}.")

    def has(self, module: str, layer: int | None = None) -> bool:
        """Whether a module is in the list; `layer` is its number where it belongs to a layer."""
        if layer is not None and any(
            _is_within(module, rest) for rest in self._of_layer.get(layer, ())
        ):
            return True
        if module not in self._known:
            self._known[module] = self._has_in_any_layer(module, layer)
        return self._known[module]

    def _has_in_any_layer(self, module: str, layer: int | None) -> bool:
        path = module if layer is None else f"layers.0.{module}"
        names = [prefix + path for prefix in _PREFIXES]
        if any(part in f".{names[0]}." for part in self._parts):
            return True
        if any(_is_within(name, card) for card in self._wildcards for name in names):
            return True
        return any(regex.match(name) for regex in self._regexes for name in names)


def _is_within(module: str, pattern: str) -> bool:
    """The pattern is the module, has wildcards for it, or names what it is a part of."""
    if module == pattern or module.startswith(f"{pattern}."):
        return True
    return "*" in pattern and (fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*"))


@dataclass(frozen=True, slots=True)
class Quantised:
    """What is quantised, and to what."""

    format: str | None  # of whatever is not listed otherwise; None: 16 bits
    ignored: Modules = field(default_factory=lambda: Modules(()))
    groups: tuple[tuple[Modules | None, str | None], ...] = ()  # None: all linear layers

    def format_of(self, names: Iterable[str], layer: int | None = None) -> str | None:
        """Format of a linear layer of a block, by any of the names that it may go by.

        None: 16 bits.
        """
        names = tuple(names)
        if self.format is None or any(self.ignored.has(name, layer) for name in names):
            return None
        for modules, number_format in self.groups:
            if modules is None or any(modules.has(name, layer) for name in names):
                return number_format
        return None if self.groups else self.format


def quantised(entry: ModelEntry, number_format: str | None) -> Quantised:
    """A model served with `number_format` (None: its checkpoint's, if that has one).

    A checkpoint's lists hold for either; without any, all linear layers of the blocks are
    quantised: so do vLLM's on-line quantisation, AWQ and GPTQ. Embeddings, the output head and
    routers never are.
    """
    own, checkpoint = stated_quantisation(entry)
    ignored = Modules(_listed(own))
    if number_format is not None:
        return Quantised(number_format, ignored)
    return Quantised(checkpoint, ignored, _groups(own) if checkpoint else ())


def _listed(stated: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for key in ("ignore", "modules_to_not_convert", "exclude_modules"):
        listed = stated.get(key)
        if isinstance(listed, list):
            names += [name for name in listed if isinstance(name, str)]
    return names


def _groups(stated: Mapping[str, Any]) -> tuple[tuple[Modules | None, str | None], ...]:
    """Formats of listed modules; empty where one format holds for all linear layers."""
    layers = stated.get("quantized_layers")
    if isinstance(layers, dict) and layers:
        by_format: dict[str, list[str]] = {}
        for name, how in layers.items():
            by_format.setdefault(str(how.get("quant_algo")).lower(), []).append(name)
        return tuple((Modules(names), algorithm) for algorithm, names in by_format.items())
    groups = stated.get("config_groups")
    found: list[tuple[Modules | None, str | None]] = []
    for group in groups.values() if isinstance(groups, dict) else ():
        targets = [str(target) for target in group.get("targets") or ("Linear",)]
        listed = [target for target in targets if target not in _CLASSES]
        found.append((Modules(listed) if listed else None, compressed_format([group])))
    is_one = len(found) == 1 and found[0][0] is None
    return () if is_one else tuple(found)
