"""A `Fidelity` as text for a terminal."""

from dynosim.compare.fidelity import Fidelity, Level, peers_of
from dynosim.fit.scores import Score


def fidelity_text(fidelity: Fidelity) -> str:
    """Tables of all levels, then where the error comes from."""
    measured = fidelity.measured
    lines = [
        f"{measured.source}: {len(measured)} requests, times on the {measured.clock} clock",
        "",
    ]
    for level in fidelity.levels:
        lines += _level_lines(level, fidelity)
    if fidelity.attribution:
        lines += [
            "Blind prediction's mean |error|, with parts replaced by measured ones (parts can"
            " make up for each other: replacing one may add error):"
        ]
    lines += [f"  {part:46} {error:7.2%}" for part, error in fidelity.attribution.items()]
    lines += _constant_lines(fidelity)
    if fidelity.gpu_warning:
        lines.append(f"WARNING: {fidelity.gpu_warning}")
    for note in fidelity.notes:
        lines.append(f"note: {note}")
    return "\n".join(lines)


def _constant_lines(fidelity: Fidelity) -> list[str]:
    fit = fidelity.fit
    if fit is None:
        return []
    lines = ["", "Fitted constants (95 % interval):"]
    for name, (low, high) in fit.intervals.items():
        mark = "  not told by the log" if name in fit.unidentified else ""
        value = getattr(fit.parameters, name)
        lines.append(f"  {name:24} {value:11.4g}  [{low:.4g}, {high:.4g}]{mark}")
    return lines


def _own_lines(level: Level) -> list[str]:
    if level.own is None:
        return []
    errors = ", ".join(f"{score.name} {score.error:+.2%}" for score in level.own.scores)
    apart = ", ".join(f"{one.metric} {one.ks:.3f}" for one in level.own.apart)
    lines = [f"  on the fitted part: {errors}; KS {apart}"]
    return lines + [f"  DOES NOT EXPLAIN ITS OWN PART: {one}" for one in level.own.misfits]


def _level_lines(level: Level, fidelity: Fidelity) -> list[str]:
    ranges = level.detail.get("intervals", {})
    rest = {score.name: score for score in level.rest}
    peer = _peer_errors(fidelity)
    head = f"{'':22}{'measured':>12}{'predicted':>12}{'error':>9}{'unseen':>9}"
    lines = [f"== {level.name}, {level.column} ==", head + f"{'peer':>9}  95 % of replays"]
    for score in level.table:
        low_high = ranges.get(score.name)
        span = f"  {low_high[0]:.2f} .. {low_high[1]:.2f}" if low_high else ""
        lines.append(_score_line(score, rest.get(score.name), peer.get(score.name)) + span)
    for one in level.detail["distances"]:
        lines.append(
            f"  per request, {one['metric']}: APE mean {one['mean_ape']:.2%},"
            f" median {one['median_ape']:.2%}; KS {one['ks']:.3f}"
        )
    lines += _own_lines(level)
    shares = ", ".join(
        f"{axis} {share:.1%}" for axis, share in level.detail["steps_in_range"].items()
    )
    load = level.detail["load"]
    lines.append(f"  steps inside the measured range: {shares}")
    state = "SATURATED" if load["saturated"] else "kept up"
    lines.append(f"  {state}: {load['reason']}" + _sustained(load))
    return [*lines, ""]


def _sustained(load: dict[str, float | None]) -> str:
    text = ""
    if load["sustained_output_tok_s"] is not None:
        text += f"; sustained {load['sustained_output_tok_s']:.0f} output tokens/s"
    if load["time_to_collapse_ms"] is not None:
        text += f"; queue from {load['time_to_collapse_ms'] / 1000:.1f} s on"
    return text


def _score_line(score: Score, rest: Score | None, peer: float | None) -> str:
    unseen = f"{rest.error:9.2%}" if rest is not None else f"{'':9}"
    theirs = f"{peer:9.1%}" if peer is not None else f"{'':9}"
    return (
        f"  {score.name:20}{score.measured:12.2f}{score.predicted:12.2f}"
        f"{score.error:9.2%}{unseen}{theirs}"
    )


def _peer_errors(fidelity: Fidelity) -> dict[str, float]:
    errors: dict[str, float] = {}
    for published in peers_of(fidelity.measured.setup):
        errors |= published["errors"]
    return errors
