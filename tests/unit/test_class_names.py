"""No public class name stands twice, so that a name says which thing is meant."""

import ast
from collections import defaultdict
from pathlib import Path

import dynosim
import dynosim_runtime

TWIN, LIVE = (Path(str(package.__file__)).parent for package in (dynosim, dynosim_runtime))


def classes_of(package: Path) -> dict[str, list[str]]:
    """Where the public classes of a package stand."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(package.parent)))
    return found


def test_no_class_of_the_live_layer_is_called_as_another() -> None:
    twin, live = classes_of(TWIN), classes_of(LIVE)
    twice = {name: [*places, *twin.get(name, [])] for name, places in live.items()}
    assert {name: places for name, places in twice.items() if len(places) > 1} == {}
