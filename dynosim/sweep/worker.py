"""A worker process of a sweep: one request per line in, one answer per line out, both in JSON.

A line asks `["package.module:function", request]`. Started as `python -m dynosim.sweep.worker
package.module`, with the module to have ready before the first one comes. It ends when its input
does, so that it never outlives its sweep for longer than one trial.
"""

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> int:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not look like an answer
    gc.disable()
    importlib.import_module(sys.argv[1])
    gc.freeze()  # what is loaded stays
    gc.enable()
    try:
        for line in sys.stdin:
            function, request = json.loads(line)
            answers.write(json.dumps(_called(function)(request)) + "\n")
            answers.flush()
    except BrokenPipeError:
        os._exit(1)  # the sweep is gone; closing `answers` would complain
    return 0


def _called(name: str) -> Callable[[Any], Any]:
    module, _, function = name.partition(":")
    found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    sys.exit(main())
