"""Many configurations at many loads. The package itself can be called: `dynosim.sweep("s.yaml")`.

A package and a function cannot share the name `dynosim.sweep` otherwise: importing any module of
the package puts the package there.
"""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `dynosim.sweep.api.sweep`."""
        from dynosim.sweep.api import sweep

        return sweep(*arguments, **options)


sys.modules[__name__].__class__ = _Package
