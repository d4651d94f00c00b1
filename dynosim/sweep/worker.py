"""A worker process of a sweep: one JSON request per line in, one JSON answer per line out.

Started as `python -m dynosim.sweep.worker package.module:function`. It ends when its input does, so
that it never outlives its sweep for longer than one trial.
"""

import importlib
import json
import os
import sys


def main() -> int:
    """Answer requests until there are no more."""
    module, _, name = sys.argv[1].partition(":")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not look like an answer
    function = getattr(importlib.import_module(module), name)
    try:
        for line in sys.stdin:
            answers.write(json.dumps(function(json.loads(line))) + "\n")
            answers.flush()
    except BrokenPipeError:
        os._exit(1)  # the sweep is gone; closing `answers` would complain
    return 0


if __name__ == "__main__":
    sys.exit(main())
