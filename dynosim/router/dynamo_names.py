"""Dynamo's names of what our files call otherwise: flags, environment variables, keys. One table.

A name `router_temperature` is the flag `--router-temperature`, the variable
`DYN_ROUTER_TEMPERATURE` and, beside the key that it stands for, the key
`router.router_temperature`. Plain text in, plain text out: what a value may be is for the key to
say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class DynamoName:
    """What Dynamo calls one of our keys, and how it writes the value.

    A `switch` is on or off, with a flag for each; `seconds` are milliseconds of ours. `flag` and
    `variable` are given where they do not follow from the name. `is_live`: of a deployment only.
    """

    name: str
    key: str
    kind: Literal["value", "switch", "seconds"] = "value"
    flag: str = ""
    variable: str = ""
    is_live: bool = False

    @property
    def option(self) -> str:
        """Its long option."""
        return f"--{(self.flag or self.name).replace('_', '-')}"

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return self.variable or f"DYN_{self.name.removeprefix('dyn_').upper()}"

    @property
    def alias(self) -> str:
        """Its name as a key, in the section of ours."""
        return f"{self.key.rpartition('.')[0]}.{self.name}"


NAMES = (
    DynamoName("router_mode", "router.mode"),
    DynamoName("router_kv_overlap_score_credit", "router.overlap_score_credit"),
    DynamoName("router_kv_overlap_score_credit_decay", "router.overlap_score_credit_decay"),
    DynamoName("router_prefill_load_scale", "router.prefill_load_scale"),
    DynamoName("router_host_cache_hit_weight", "router.host_cache_hit_weight"),
    DynamoName("router_disk_cache_hit_weight", "router.disk_cache_hit_weight"),
    DynamoName("router_decode_active_request_weight", "router.active_request_weight"),
    DynamoName("router_temperature", "router.temperature"),
    DynamoName("load_aware", "router.load_aware", "switch"),
    DynamoName("router_use_kv_events", "router.use_kv_events", "switch", flag="router_kv_events"),
    DynamoName("router_assume_kv_reuse", "router.assume_kv_reuse", "switch"),
    DynamoName("router_track_prefill_tokens", "router.track_prefill_tokens", "switch"),
    DynamoName("router_track_output_blocks", "router.track_output_blocks", "switch"),
    DynamoName("router_track_active_blocks", "router.track_active_blocks", "switch"),
    DynamoName("router_prefill_load_model", "router.prefill_load_model"),
    DynamoName("router_ttl_secs", "router.ttl_ms", "seconds"),
    DynamoName("router_predicted_ttl_secs", "router.predicted_ttl_ms", "seconds"),
    DynamoName("router_approximate_cache_policy", "router.approximate_cache_policy"),
    DynamoName("router_queue_threshold", "router.queue_threshold"),
    DynamoName("router_queue_policy", "router.queue_policy"),
    DynamoName("router_session_affinity_ttl_secs", "router.session_affinity_ttl_ms", "seconds"),
    DynamoName("router_session_affinity_mode", "router.session_affinity_mode"),
    DynamoName("active_decode_blocks_threshold", "router.active_decode_blocks_threshold"),
    DynamoName("active_prefill_tokens_threshold", "router.active_prefill_tokens_threshold"),
    DynamoName(
        "active_prefill_tokens_threshold_frac", "router.active_prefill_tokens_threshold_frac"
    ),
    DynamoName("kv_cache_block_size", "engine.block_size"),
    DynamoName("http_host", "live.host", is_live=True),
    DynamoName("http_port", "live.port", is_live=True),
    DynamoName("discovery_backend", "live.discovery", is_live=True),
    DynamoName("migration_limit", "live.migration_limit", is_live=True),
    DynamoName("dyn_tool_call_parser", "live.tool_parser", is_live=True),
    DynamoName("dyn_reasoning_parser", "live.reasoning_parser", is_live=True),
    DynamoName("strip_anthropic_preamble", "live.strip_anthropic_preamble", "switch", is_live=True),
)
_WORDS: Mapping[str, Mapping[str, str]] = {
    "router.prefill_load_model": {"ais": "timing", "aic": "timing"}
}
"""Values that Dynamo has other words for, by our key."""

KEY_ALIASES = {name.alias: name.key for name in NAMES if name.alias != name.key}
_BY_ALIAS = {name.alias: name for name in NAMES if name.alias != name.key}


class Stated(str):
    """`key=value`, and where it was said: a flag or a variable, for messages."""

    __slots__ = ("source",)
    source: str

    @classmethod
    def of(cls, name: DynamoName, text: str, source: str) -> "Stated":
        """What a flag or variable with this text says of our key."""
        stated = cls(f"{name.key}={_our_text(name, text)}")
        stated.source = source
        return stated


def stated_in(environment: Mapping[str, str]) -> list[Stated]:
    """What the environment says; an empty variable says nothing."""
    return [
        Stated.of(name, text, name.environment)
        for name in NAMES
        if (text := environment.get(name.environment, "").strip())
    ]


def silenced() -> dict[str, str]:
    """An environment that says nothing, for a process whose plan has all of it already."""
    return {name.environment: "" for name in NAMES}


def our_value(alias: str, value: Any) -> Any:
    """The value of a key that was written under Dynamo's name; of lists and ranges all of them."""
    name = _BY_ALIAS.get(alias)
    if name is None:
        return value
    if isinstance(value, list):
        return [our_value(alias, one) for one in value]
    if isinstance(value, dict):
        return {part: our_value(alias, one) for part, one in value.items()}
    if isinstance(value, str):
        return _WORDS.get(name.key, {}).get(value, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * 1000 if name.kind == "seconds" and is_number else value


def _our_text(name: DynamoName, text: str) -> str:
    if text.lower() in ("none", "null") and name.key != "router.prefill_load_model":
        return "null"
    if name.kind == "switch":
        word = text.lower()
        return "true" if word in YES else "false" if word in NO else text
    if name.kind == "seconds":
        try:
            return repr(float(text) * 1000)
        except ValueError:
            return text
    return _WORDS.get(name.key, {}).get(text, text)
