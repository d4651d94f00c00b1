"""Server-sent events, read: bytes in, the data of complete events out."""

from dynosim_runtime.clients.base import EngineLostError

MAX_EVENT_BYTES = 16 << 20


class SseParser:
    """Collects bytes until events are complete. Comments and fields but `data` are passed over."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of all events that are complete now.

        Raises: EngineLostError if an event has no end within `MAX_EVENT_BYTES`.
        """
        *complete, rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise EngineLostError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        self._rest = rest
        events = []
        for event in complete:
            if event.startswith(b"data: ") and b"\n" not in event:  # nearly all are
                events.append(event[6:])
                continue
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n")
                     if line.startswith(b"data:")]  # fmt: skip
            if lines:
                events.append(b"\n".join(lines))
        return events
