"""Lines of JSON into checked rows, one by one, with what is wrong told by file and line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from dynosim.errors import TraceError
from dynosim.workload.columns import TOKENS_MAX
from dynosim.workload.json_messages import UNREADABLE, syntax_problem, type_problem
from dynosim.workload.lines import line_chunks
from dynosim.workload.problems import ProblemLog, RowProblem

Row = TypeVar("Row", bound=msgspec.Struct)


class RecordedLines(Generic[Row]):
    """The rows of a file: bad ones stop the reading, or are left out and counted.

    A reader reports what it finds wrong with a row by `refuse`; `finish` raises for all that was
    found if bad lines are not to be left out.
    """

    def __init__(self, path: Path, row: type[Row], *, skip_bad_lines: bool) -> None:
        self.path = path
        self.num_skipped = 0
        self._row = row
        self._skips = skip_bad_lines
        self._log = ProblemLog()

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Each row that can be decoded, with its line number."""
        decoder = msgspec.json.Decoder(self._row)
        for chunk in line_chunks(self.path):
            for line, text in chunk.numbered_lines():
                try:
                    yield line, decoder.decode(text)
                except msgspec.ValidationError as error:
                    self._log.add([type_problem(line, text, str(error), self._row)])
                except UNREADABLE as error:
                    self._log.add([syntax_problem(line, text, error)])

    @property
    def has_problems(self) -> bool:
        """Whether any row could not be used."""
        return bool(self._log.num_lines)

    def refuse(self, line: int, field: str, message: str) -> None:
        """Take note that a row cannot be used."""
        self._log.add([RowProblem(line, field, message)])

    def are_lengths(self, line: int, **lengths: int) -> bool:
        """Whether all are token counts of at least 1; the first that is not is refused."""
        for field, tokens in lengths.items():
            if not 1 <= tokens < TOKENS_MAX:
                self.refuse(line, field, f"expected an integer >= 1, got {tokens}")
                return False
        return True

    def finish(self) -> None:
        """Raises: TraceError naming the first bad line, unless bad lines are left out."""
        if self._log.num_lines and not self._skips:
            raise self._log.error(str(self.path))
        self.num_skipped = self._log.num_lines


def require_block_size(found: int, declared: int | None, *, path: str, line: int) -> None:
    """Raises: TraceError if a file says another block size than the user, or an impossible one."""
    if found < 1:
        raise TraceError(f"expected an integer >= 1, got {found}", path=path, line=line,
                         field="block_size")  # fmt: skip
    if declared is not None and declared != found:
        raise TraceError(
            f"blocks of {found} tokens, but trace_block_size (--trace-block-size) is {declared} "
            "(leave it out: this format states its own)",
            path=path,
            line=line,
        )
