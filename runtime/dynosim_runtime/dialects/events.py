"""Server-sent events as bytes."""

import orjson

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"


def data_event(content: object) -> bytes:
    """An event without a name."""
    return b"data: %b\n\n" % orjson.dumps(content)


def named_event(name: str, content: object) -> bytes:
    """An event with a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(content))
