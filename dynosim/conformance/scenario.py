"""What a scenario asks for: an engine, prompts as token ids, and which blocks they share."""

from typing import Any, get_args

from dynosim.engine.cores import CORES
from dynosim.engine.spec import DraftMethod, EngineSpec, HostCacheSpec, SpeculativeSpec
from dynosim.errors import ConfigError

Json = dict[str, Any]

COEFFICIENTS = ("c0", "c1", "c2", "c3")
DRAFT_COEFFICIENT = "c4"
_REQUEST_KEYS = (
    "id",
    "arrival_step",
    "arrival_ms",
    "prompt_tokens",
    "prompt_ranges",
    "hash_ids",
    "trace_block_size",
    "input_length",
    "output_length",
    "output_start",
    "priority",
    "abort",
    "remote",
)
_DRAFT_KEYS = ("accept", "drafts")  # of a request, and of an engine for all of them
_REMOTE_KEYS = ("recv", "tokens", "send", "delay", "fail")
_HOST_KEYS = ("policy", "blocks_per_chunk", "store_threshold", "prompt_only")
_COPY_KEYS = ("load_delay", "load_per_block", "store_delay", "store_per_block")
_OFFLOAD_KEYS = ("chunks", *_HOST_KEYS, *_COPY_KEYS)
_SPEC_KEYS = ("k", "method", *_DRAFT_KEYS)
_SECTIONS = ("remote", "offload", "spec")
_SPEC_OF_REMOTE = {"role": "kv_role", "failure_policy": "kv_load_failure_policy"}
_DEFAULT_REMOTE = {"role": "kv_both", "failure_policy": "recompute"}


def spec_of(engine: Json) -> EngineSpec:
    """The engine section of a scenario as a spec; unknown keys and kinds are errors."""
    own = {name for name in EngineSpec.__dataclass_fields__ if not name.startswith("kv_")}
    own -= {"host_cache", "speculation"}
    _refuse_unknown("engine", engine, tuple(sorted(own | set(_SECTIONS))))
    knobs = {key: value for key, value in engine.items() if key not in _SECTIONS}
    if engine.get("spec") is not None:
        knobs["speculation"] = _speculation_of(engine["spec"], engine)
    if engine.get("offload") is not None:
        offload = engine["offload"]
        _refuse_unknown("engine.offload", offload, _OFFLOAD_KEYS)
        if not engine.get("enable_prefix_caching", True):
            raise ConfigError(
                "engine.offload: without enable_prefix_caching nothing is found again (leave one "
                "of them out)"
            )
        knobs["host_cache"] = HostCacheSpec(
            num_chunks=offload["chunks"],
            **{key: offload[key] for key in _HOST_KEYS if key in offload},
        )
    if engine.get("remote") is not None:
        _refuse_unknown("engine.remote", engine["remote"], tuple(_DEFAULT_REMOTE))
        remote = _DEFAULT_REMOTE | engine["remote"]
        knobs |= {_SPEC_OF_REMOTE[key]: value for key, value in remote.items()}
    spec = EngineSpec(**knobs)
    if spec.kind not in CORES:
        raise ConfigError(f"engine.kind: unknown {spec.kind!r}; known: {', '.join(sorted(CORES))}")
    return spec


def _speculation_of(section: Json, engine: Json) -> SpeculativeSpec:
    """The section `spec` of an engine; what vLLM refuses is an error."""
    _refuse_unknown("engine.spec", section, _SPEC_KEYS)
    method = section.get("method", "ngram")
    if method not in get_args(DraftMethod):
        known = ", ".join(get_args(DraftMethod))
        raise ConfigError(f"engine.spec.method: unknown {method!r}; known: {known}")
    if section["k"] < 1:
        raise ConfigError(f"engine.spec.k: expected at least one draft, got {section['k']}")
    if method == "ngram" and engine.get("async_scheduling"):
        raise ConfigError(
            "engine.spec.method: ngram does not go with async_scheduling (leave one of them out)"
        )
    return SpeculativeSpec(num_drafts=section["k"], method=method)


def check_request(request: Json, *, has_drafts: bool = False) -> None:
    """Raises: ConfigError for a key that is not known, since nothing would obey it."""
    where = f"request {request['id']}"
    _refuse_unknown(where, request, _REQUEST_KEYS + (_DRAFT_KEYS if has_drafts else ()))
    _refuse_unknown(f"{where}: remote", request.get("remote") or {}, _REMOTE_KEYS)


def check_timing(timing: Json, *, has_drafts: bool = False) -> None:
    """Raises: ConfigError for a coefficient that is not known."""
    _refuse_unknown("timing", timing, COEFFICIENTS + ((DRAFT_COEFFICIENT,) if has_drafts else ()))


def _refuse_unknown(where: str, section: Json, known: tuple[str, ...]) -> None:
    unknown = sorted(set(section) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")


def prompt_tokens_of(request: Json) -> list[int]:
    """Token ids of a request's prompt, from any of the three forms a scenario may use."""
    if "prompt_tokens" in request:
        return list(request["prompt_tokens"])
    if "prompt_ranges" in request:
        return [t for start, count in request["prompt_ranges"] for t in range(start, start + count)]
    size, length = request["trace_block_size"], request["input_length"]
    tokens = [t for h in request["hash_ids"] for t in range(h * size, h * size + size)]
    if len(tokens) < length:
        raise ConfigError(f"{request['id']}: hash_ids cover {len(tokens)} < {length} tokens")
    return tokens[:length]


class BlockTree:
    """Names the full blocks of all requests: equal prefixes get equal content ids."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.labels: list[str] = []  # by content id
        self._children: dict[tuple[int, tuple[int, ...]], int] = {}

    def path_of(self, request_id: str, tokens: list[int]) -> list[int]:
        """The path of a sequence, one block an extent; new blocks are labelled after it."""
        size = self.block_size
        path: list[int] = []
        parent = -1
        for index in range(len(tokens) // size):
            key = (parent, tuple(tokens[index * size : (index + 1) * size]))
            content = self._children.get(key)
            if content is None:
                content = self._children[key] = len(self.labels)
                self.labels.append(f"{request_id}:{index}")
            path.append(content)
            parent = content
        return path
