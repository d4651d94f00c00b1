"""From a sweep file (and `--set`) to a checked description of what to run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from dynosim.config.aliases import SWEEP_ALIASES, use_our_names
from dynosim.config.dimensions import Dimension, parse_dimension
from dynosim.config.explain import explain
from dynosim.config.keys import SWEEP_KEYS, key_problem
from dynosim.config.load_rules import load_problems, resolved_load
from dynosim.config.loading import check_run
from dynosim.config.overrides import apply_overrides
from dynosim.config.problems import Path, Problem, nearest
from dynosim.config.report_keys import is_report_key, known_report_keys
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_modes import MODE, data_at, is_of_mode, mode_of, values_that_count
from dynosim.config.sweep_schema import Goal, LoadConfig, Search, SweepConstraints, SweepKeys
from dynosim.config.yaml_source import Document, read_document


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """A run file with holes (`base`), what fills them (`dimensions`), and what is sought."""

    name: str
    base: dict[str, Any]
    folder: FilePath
    dimensions: tuple[Dimension, ...]
    constraints: SweepConstraints
    objectives: dict[str, Goal]
    search: Search
    load: LoadConfig
    top: int
    source_data: dict[str, Any]  # the whole file as data, overrides applied

    def point_data(self, values: dict[str, Any]) -> dict[str, Any]:
        """The run file's data at a point: `values` by dotted key, without those of another mode."""
        return data_at(values_that_count(values, self.base), self.base)

    def values_that_count(self, values: dict[str, Any]) -> dict[str, Any]:
        """Of a point's `values` those that its cluster obeys."""
        return values_that_count(values, self.base)


def load_sweep(path: str | FilePath, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep file at `path`, changed by the overrides.

    Raises: ConfigError that tells every problem with its file, line, key and remedy.
    """
    return sweep_config(read_document(FilePath(path)), overrides)


def sweep_config(document: Document, overrides: Sequence[str] = ()) -> SweepConfig:
    """The document as a sweep, changed by the overrides. Raises: as `load_sweep`."""
    use_our_names(document, SWEEP_ALIASES)
    apply_overrides(document, overrides, SWEEP_ALIASES)
    sweep, problems = _sweep(document)
    if sweep is not None and not problems:
        problems = _swept_overrides(document, sweep.dimensions) or _point_problems(sweep)
    if problems or sweep is None:
        raise document.error(problems)
    return sweep


def _sweep(document: Document) -> tuple[SweepConfig | None, list[Problem]]:
    data = document.data
    own = {key: value for key, value in data.items() if key in SWEEP_KEYS}
    base = {key: value for key, value in data.items() if key not in SWEEP_KEYS}
    try:
        keys = SweepKeys.of(own)
    except ValidationError as error:
        return None, [_sweep_hint(problem) for problem in explain(error, SweepKeys, own)]
    is_grid = keys.search.method == "grid"
    parsed = [parse_dimension(key, raw, is_grid=is_grid) for key, raw in keys.space.items()]
    dimensions = tuple(entry for entry in parsed if isinstance(entry, Dimension))
    problems = [problem for entry in parsed if isinstance(entry, list) for problem in entry]
    problems += _key_problems(keys.space, base) + _objective_problems(keys.objectives)
    keys = keys.model_copy(update={"load": resolved_load(keys, base)})
    problems += load_problems(keys, base) + _mode_problems(keys.space, base)
    sweep = SweepConfig(
        name=str(data.get("name") or FilePath(document.name).stem),
        base=base,
        folder=document.folder,
        dimensions=dimensions,
        constraints=keys.constraints,
        objectives=keys.objectives,
        search=keys.search,
        load=keys.load,
        top=keys.top,
        source_data=data,
    )
    return sweep, problems


def _sweep_hint(problem: Problem) -> Problem:
    if problem.path == ("space",) and problem.text == "missing":
        remedy = "add what varies, or use `dynosim run` for one configuration"
        return replace(problem, remedy=remedy)
    return problem


def _key_problems(space: dict[str, Any], base: dict[str, Any]) -> list[Problem]:
    if not space:
        return [Problem(("space",), "nothing varies", "add `engine.tensor_parallel: [1, 2]`")]
    problems = []
    for key in space:
        if found := key_problem(tuple(key.split(".")), base):
            problems.append(Problem(("space", key), *found))
        inside = [other for other in space if key.startswith(f"{other}.")]
        problems += [
            Problem(("space", key), f"lies inside {other}, which varies too", "keep one of them")
            for other in inside
        ]
    return problems


def _mode_problems(space: dict[str, Any], base: dict[str, Any]) -> list[Problem]:
    """A key of the other mode varies nothing where the mode does not vary."""
    if MODE in space or "cluster" in space:
        return []
    mode = mode_of({}, base)
    remedy = "add `cluster.mode: [agg, disagg]` to the space, or take it out"
    return [
        Problem(("space", key), f"has no effect: cluster.mode is {mode}", remedy)
        for key in space
        if not is_of_mode(key, mode)
    ]


def _objective_problems(objectives: dict[str, Goal]) -> list[Problem]:
    if not objectives:
        return [Problem(("objectives",), "none given", "add `output_tok_s_per_gpu: max`")]
    problems = []
    for key in objectives:
        if not is_report_key(key):
            near = nearest(key, known_report_keys())
            remedy = f"did you mean {near}?" if near else "use a number of report.json"
            problems.append(Problem(("objectives", key), "no such number in a report", remedy))
    return problems


def _swept_overrides(document: Document, dimensions: tuple[Dimension, ...]) -> list[Problem]:
    """A `--set` of a key that varies would have no effect."""
    problems = []
    for dimension in dimensions:
        if document.places.get(dimension.path, "").startswith("--set"):
            remedy = f"--set space.{dimension.key}='[...]'"
            problems.append(Problem(dimension.path, "varies in space", remedy))
    return problems


def _point_problems(sweep: SweepConfig) -> list[Problem]:
    """Everything wrong with any single value, tried around the first value of each dimension.

    Broken rules are left to the trials: a combination may be refused where another is not.
    """
    first = {dimension.key: dimension.samples()[0] for dimension in sweep.dimensions}
    problems: list[Problem] = []
    for dimension in sweep.dimensions:
        around = {**first, **_mode_for(dimension, sweep)}
        for index, value in enumerate(dimension.samples()):
            checked = check_run(sweep.point_data({**around, dimension.key: value}), sweep.folder)
            if isinstance(checked, RunConfig):
                continue
            for problem in checked:
                owner = _owner(problem.path, sweep.dimensions)
                if problem.is_rule or owner not in (None, dimension):
                    continue
                path = ("space", dimension.key, index) if owner else problem.path
                problems.append(replace(problem, path=path))
    return list(dict.fromkeys(problems))


def _mode_for(dimension: Dimension, sweep: SweepConfig) -> dict[str, Any]:
    """The mode in which a dimension counts, where the mode varies and not every one will do."""
    modes = [mode for other in sweep.dimensions if other.key == MODE for mode in other.samples()]
    fitting = [m for m in modes if m in ("agg", "disagg") and is_of_mode(dimension.key, m)]
    return {MODE: fitting[0]} if dimension.key != MODE and fitting else {}


def _owner(path: Path, dimensions: tuple[Dimension, ...]) -> Dimension | None:
    for dimension in dimensions:
        if path[: len(dimension.path)] == dimension.path:
            return dimension
    return None
