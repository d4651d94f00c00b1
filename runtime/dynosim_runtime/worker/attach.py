"""The address of an engine that runs already: `http://HOST:PORT`, and where its events are.

Events and their replay are told as `http://HOST:PORT?events=tcp://HOST:PORT&replay=...&topic=...`;
without them, frontends guess what the engine has cached.
"""

from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from dynosim.errors import ConfigError
from dynosim_runtime.card import EventSource

KEYS = ("events", "replay", "topic")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A running engine."""

    url: str  # without a slash at the end
    events: tuple[EventSource, ...]


def parse_attachment(text: str) -> Attachment:
    """Raises: ConfigError for what is no such address."""
    form = "http://HOST:PORT, or http://HOST:PORT?events=tcp://HOST:PORT&replay=tcp://HOST:PORT"
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        given = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError(f"--attach {text!r}: {error} (expected {form})") from None
    unknown = sorted(set(given) - set(KEYS))
    if not is_url or unknown:
        reason = f"unknown {', '.join(unknown)}" if unknown else "not an HTTP address"
        raise ConfigError(f"--attach {text!r}: {reason} (expected {form})")
    values = {key: given[key][-1] if key in given else None for key in KEYS}
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    endpoint = values["events"]
    if endpoint is None:
        if given:
            raise ConfigError(f"--attach {text!r}: replay and topic need events (expected {form})")
        return Attachment(url, ())
    source = EventSource(
        endpoint=endpoint, replay_endpoint=values["replay"], topic=values["topic"] or ""
    )
    return Attachment(url, (source,))
