"""Exceptions: theirs (bad input: a message and an exit code) and ours (a broken invariant)."""

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_NONE_FOUND = EXIT_NOT_MET = 3
EXIT_INTERRUPTED = 130
"""Exit codes of commands, next to 0: done. None found: nothing is as it was asked to be. Not met:
what the user asked to be a failure has come true.
"""


class DynosimError(Exception):
    """Something the user can mend; the message names the file, line or key and the remedy."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(DynosimError):
    """A run or sweep file asks for something that cannot be run."""


class TraceError(DynosimError):
    """A row of a trace or of a timing profile cannot be used.

    `path`, `line` (1-based, 0 when the whole file is meant) and `field` locate it.
    """

    def __init__(self, message: str, *, path: str = "", line: int = 0, field: str = "") -> None:
        location = ":".join(part for part in (path, str(line) if line else "", field) if part)
        super().__init__(f"{location}: {message}" if location else message)
        self.path = path
        self.line = line
        self.field = field


class InfeasibleError(ConfigError):
    """A well-formed configuration that the hardware cannot hold; sweeps list it with its reason."""


class InvariantError(AssertionError):
    """Our bug: a law that every run must obey was broken."""
