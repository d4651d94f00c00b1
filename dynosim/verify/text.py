"""A verification for a terminal."""

from collections.abc import Sequence

from dynosim.verify.matrix import HEAD, LEVEL_NAMES, counted, row, summaries, summary_row, uncovered
from dynosim.verify.verdict import RecordingVerdict
from dynosim.verify.verification import Verification

_MOST_NAMED = 4


def verification_text(verification: Verification) -> str:
    """The matrix, what was left out of it and why, and where intervals did not cover."""
    judged = [one for one in verification.verdicts if not one.problem]
    fit = [one for one in judged if not one.excluded]
    apart = [one for one in judged if one.excluded]
    rows = [list(HEAD), *map(row, fit), *map(summary_row, summaries(fit))]
    lines = aligned(_used_columns(rows)) if fit else []
    if apart:
        lines += [
            "",
            "Shown apart, not counted:",
            *aligned(_used_columns([list(HEAD), *map(row, apart)])),
        ]
        lines += [f"  {name}: {why}" for name, why in
                  dict.fromkeys((one.recording, one.excluded) for one in apart)]  # fmt: skip
    lines += _left_out(verification)
    outside = uncovered(fit)
    if outside:
        lines += ["", "Measured figures outside their interval:"]
        lines += [f"  {_name(one)}: {_shortened(names)}" for one, names in outside]
    lines += _notes(judged)
    return "\n".join(lines).strip("\n")


def _left_out(verification: Verification) -> list[str]:
    plan = verification.plan
    lines = [
        f"not predicted: {_name(one)}: {one.problem}"
        for one in verification.verdicts
        if one.problem
    ]
    lines += [f"unreadable: {why}" for _, why in plan.unreadable]
    if plan.passed_over:
        lines.append(f"passed over: {counted(plan.passed_over, 'file')} with no recording")
    return ["", *lines] if lines else []


def _notes(judged: Sequence[RecordingVerdict]) -> list[str]:
    """Each note once, with the recordings that it is about."""
    about: dict[str, list[str]] = {}
    for one in judged:
        for note in one.notes:
            names = about.setdefault(note, [])
            if one.recording not in names:
                names.append(one.recording)
    return (
        ["", *(f"note: {_shortened(names)}: {note}" for note, names in about.items())]
        if about
        else []
    )


def _name(verdict: RecordingVerdict) -> str:
    return f"{verdict.recording}, {LEVEL_NAMES[verdict.level]}"


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _used_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Without columns in which no row has anything."""
    used = [place for place in range(len(rows[0])) if any(cells[place] for cells in rows[1:])]
    return [[cells[place] for place in used] for cells in rows]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows in columns, words to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if place < 2 or place == last else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
