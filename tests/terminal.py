"""A terminal in stderr's place, and a clock that tests move."""

import io
import re
import sys
import time

import pytest

CODES = re.compile(r"\x1b\[(\??\d*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Clock:
    """Seconds, moved by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


class Terminal(io.StringIO):
    """What stderr is from now on, in the test itself (pytest sets its own after each fixture)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int = 200) -> None:
        super().__init__()
        monkeypatch.setattr(sys, "stderr", self)
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(columns)}.items():
            monkeypatch.setenv(name, value)

    def isatty(self) -> bool:
        return True

    def last_bar(self) -> str:
        """The line with the bar that was drawn last, without the bar itself."""
        drawn = [text for *_, text in CODES.findall(self.getvalue()) if "━" in text]
        return re.sub(r" *[━╸╺][━╸╺ ]*", " ", drawn[-1], count=1).strip()

    def lines(self) -> list[str]:
        """What stands there."""
        lines, row, column = [""], 0, 0
        for number, code, to_start, down, text in CODES.findall(self.getvalue()):
            if code == "A":
                row -= int(number or 1)
            elif code == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            elif to_start:
                column = 0
            elif down:
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif text:
                before = lines[row][:column].ljust(column)
                column += len(text)
                lines[row] = before + text + lines[row][column:]
        return [line.rstrip() for line in lines if line.strip()]
