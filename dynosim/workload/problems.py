"""What is wrong with the rows of a trace, gathered into one error a person can act on."""

from collections.abc import Iterable
from dataclasses import dataclass

from dynosim.errors import TraceError

NUM_LISTED = 6
"""Bad lines spelled out in the message; the others are counted."""

REMEDY = "mend the file, or leave bad lines out with --skip-bad-lines (skip_bad_lines: true)"


@dataclass(frozen=True, slots=True, order=True)
class RowProblem:
    """One reason why one line cannot be used. `line` is 1-based."""

    line: int
    field: str
    message: str


class ProblemLog:
    """The first few problems of a file and the number of bad lines."""

    __slots__ = ("listed", "num_lines")

    def __init__(self) -> None:
        self.listed: list[RowProblem] = []
        self.num_lines = 0

    def add(self, problems: Iterable[RowProblem]) -> None:
        """Note problems: at most one per line, any order."""
        ordered = sorted(problems)
        self.num_lines += len(ordered)
        self.listed.extend(ordered[: NUM_LISTED - len(self.listed)])

    def error(self, path: str) -> TraceError:
        """The exception that names the first bad line, lists a few more and counts the rest."""
        first, *others = sorted(self.listed)
        lines = [first.message]
        lines += [_one_line(problem) for problem in others]
        unlisted = self.num_lines - len(self.listed)
        if unlisted:
            lines.append(f"  and {unlisted} more bad lines")
        lines.append(f"  ({REMEDY})")
        return TraceError("\n".join(lines), path=path, line=first.line, field=first.field)


def _one_line(problem: RowProblem) -> str:
    field = f"{problem.field}: " if problem.field else ""
    return f"  line {problem.line}: {field}{problem.message}"
