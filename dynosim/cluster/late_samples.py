"""The samples of a scrape, each worked out when somebody reads it: most are never read."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Protocol


class Readings(Protocol):
    """What a scrape found, before it is put in words."""

    num_names: int

    def value(self, name: str) -> float:
        """One sample. Raises: KeyError if there is none of that name."""
        ...

    def get(self, name: str, default: Any) -> Any:
        """One sample, or the default if there is none of that name."""
        ...

    def names(self) -> dict[str, None]:
        """The names of all samples, in order; not to be changed."""
        ...

    def all(self) -> dict[str, float]:
        """All samples."""
        ...


class LateSamples(Mapping[str, float]):
    """Samples by name; equal to a dictionary with the same."""

    __slots__ = ("_readings",)

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def __getitem__(self, name: str) -> float:
        return self._readings.value(name)

    def get(self, name: str, default: Any = None) -> Any:
        """See `Mapping`; readers ask for samples that may not be there."""
        return self._readings.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._readings.names())

    def __len__(self) -> int:
        return self._readings.num_names

    def keys(self) -> KeysView[str]:
        """See `Mapping`."""
        return self._readings.names().keys()

    def items(self) -> ItemsView[str, float]:
        """See `Mapping`."""
        return self._readings.all().items()

    def values(self) -> ValuesView[float]:
        """See `Mapping`."""
        return self._readings.all().values()

    def __repr__(self) -> str:
        return repr(self._readings.all())
