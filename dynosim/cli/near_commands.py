"""What was meant by a command that is none: words of other tools, and slips of the keyboard."""

from collections.abc import Iterable
from difflib import get_close_matches

MEANT = {
    "aiperf": "validate",
    "accuracy": "verify",
    "bench": "validate",
    "benchmark": "validate",
    "check": "validate",
    "compare": "diff",
    "config": "explain",
    "convert": "trace convert",
    "default": "sweep",
    "doc": "explain",
    "exp": "sweep",
    "fit": "calibrate",
    "frontend": "serve frontend",
    "generate": "init",
    "fidelity": "verify",
    "gpus": "support",
    "hardware": "support",
    "inspect": "trace inspect",
    "keys": "explain",
    "mocker": "serve worker",
    "models": "support",
    "new": "init",
    "optimize": "sweep",
    "profile": "calibrate",
    "recorded": "verify",
    "replay": "run",
    "search": "sweep",
    "sim": "run",
    "simulate": "run",
    "start": "deploy",
    "synth": "trace synth",
    "worker": "serve worker",
}
"""Words of AIConfigurator, of Dynamo and of the field, and our command for the same."""


def unknown_command(word: str, commands: Iterable[str]) -> str:
    """What to say of a word that is no command, of those that there are."""
    known = list(commands)
    meant = MEANT.get(word.lower(), "")
    if meant.split(" ")[0] in known:
        return f"no command {word!r}: use `dynosim {meant}`"
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"no command {word!r}: did you mean `dynosim {near[0]}`?"
    return f"no command {word!r}; there are: {', '.join(known)}"
