"""Makes the `SiliconTable` of one engine from aiconfigurator-core's measurements.

Slow to import: only on a miss. Works with aiconfigurator-core 0.12.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.silicon.assemble import assemble
from dynosim.silicon.extraction import Extraction, covered
from dynosim.silicon.operations import model_operations, tables_of
from dynosim.silicon.same_kernels import library_config
from dynosim.silicon.table_versions import (
    TableChoice,
    TableName,
    others_by_distance,
    systems_folder,
)
from dynosim.timing.architecture import ModelEntry
from dynosim.timing.operation_bounds import Operation
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.silicon_table import SiliconTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SiliconQuery:
    """One engine to be timed: what aiconfigurator needs to know of it."""

    model: ModelEntry
    system: str
    backend: str
    choice: TableChoice  # which version's measurements
    tensor_parallel: int
    kv_heads_per_rank: int
    is_latent_attention: bool
    options: dict[str, Any]  # further keyword arguments: quantisation modes, expert sharding
    max_tokens: int
    max_context: int
    max_batch: int
    sheet: HardwareSheet | None  # what times are held against; None: nothing
    trust_tables: bool = False  # whether what is not credible is taken all the same


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's warnings off the terminal; errors reach us as exceptions anyway."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(previous)


@contextmanager
def model_folder(entry: ModelEntry) -> Iterator[str]:
    """A folder that holds the model's config under the names that the library reads.

    Given a name, the library would download what it does not know, although its own package may
    ship the config; given a folder, it reads that.
    """
    with tempfile.TemporaryDirectory(prefix="dynosim-model-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(library_config(entry)))
        if entry.quantisation is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps(entry.quantisation))
        yield name


def extract_table(query: SiliconQuery) -> SiliconTable:
    """The table of one engine; takes 1 to 3 s.

    Where the chosen version of a table lacks what is asked, the next nearest is tried, at last
    other engines' measurements of the same kernels; the table's notes say so.

    Raises: ConfigError if the package is missing or its data do not cover the engine.
    """
    try:
        with quiet(), model_folder(query.model) as folder:
            return _first_that_covers(query, folder)
    except ImportError as error:
        raise ConfigError(
            f"timing.kind aiconfigurator: {error}; install aiconfigurator-core,"
            " or use `timing: {kind: roofline}`"
        ) from None
    except Exception as error:  # the library raises its own, ValueError, KeyError, AssertionError
        if isinstance(error, MemoryError):
            raise
        raise ConfigError(_not_covered(query, error)) from error


@dataclass(slots=True)
class _Attempts:
    """What is left to try where measurements are missing."""

    query: SiliconQuery
    choice: TableChoice
    with_others: bool = False
    left: dict[TableName, list[str]] = field(default_factory=dict)

    def turn(self, missing: list[Operation]) -> bool:
        """Turn to the next versions of what lacks operations; False where nothing is left."""
        is_turned = False
        for table in sorted({table for operation in missing for table in tables_of(operation)}):
            if table not in self.choice.versions:
                continue
            if table not in self.left:
                chosen = self.choice.versions[table]
                self.left[table] = others_by_distance(
                    self.query.system, self.query.backend, table, chosen
                )
            if self.left[table]:
                self.choice = self.choice.changed(table, self.left[table].pop(0))
                is_turned = True
        if not is_turned and not self.with_others:
            self.choice, self.with_others, is_turned = self.query.choice, True, True
        return is_turned


def _first_that_covers(query: SiliconQuery, folder: str) -> SiliconTable:
    from aiconfigurator_core.sdk import EngineHandle

    operations = model_operations(folder, query.backend, query.tensor_parallel, query.options)
    attempts = _Attempts(query, query.choice)
    while True:
        choice, with_others = attempts.choice, attempts.with_others
        with systems_folder(query.system, query.backend, choice, with_others=with_others) as root:
            handle = EngineHandle.compile(
                folder,
                query.system,
                query.backend,
                tp_size=query.tensor_parallel,
                backend_version=choice.label,
                systems_path=str(root),
                **query.options,
            )
            try:
                extraction = Extraction(handle)
                extraction.verify()
                return assemble(extraction, query, operations, choice, with_others=with_others)
            except Exception:
                if operations is None or not attempts.turn(_missing(handle, operations)):
                    raise


def _missing(handle: Any, operations: tuple[list[Operation], list[Operation]]) -> list[Operation]:
    """The first operation of each phase that the library has no times of."""
    num_context, num_generation = covered(handle)
    return operations[0][num_context:][:1] + operations[1][num_generation:][:1]


def _not_covered(query: SiliconQuery, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"timing.kind aiconfigurator: no measurements of {query.model.name} on {query.system} with"
        f" {query.backend}, tensor_parallel {query.tensor_parallel}"
        f"{', ' + str(query.options) if query.options else ''} ({reason});"
        " use `timing: {kind: roofline}` for an estimate"
    )
