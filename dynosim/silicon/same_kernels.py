"""Models whose architecture aiconfigurator-core lacks by name, though it has the kernels."""

from typing import Any

from dynosim.timing.architecture import ModelEntry

_SAME_KERNELS = {"MistralForCausalLM": ("LlamaForCausalLM", "llama")}
"""By architecture, one of the same layers that the library knows, and its model type. Mistral's own
models attend to all tokens where `sliding_window` is null, as Llama does."""


def equivalent_architecture(entry: ModelEntry) -> str | None:
    """The architecture that the model is asked for as; None where it is its own."""
    names = entry.config.get("architectures") or [""]
    known = _SAME_KERNELS.get(str(names[0]))
    return None if known is None else known[0]


def library_config(entry: ModelEntry) -> dict[str, Any]:
    """The model's config under an architecture that the library knows, with the same widths."""
    names = entry.config.get("architectures") or [""]
    known = _SAME_KERNELS.get(str(names[0]))
    if known is None:
        return entry.config
    return {**entry.config, "architectures": [known[0]], "model_type": known[1]}
