"""The examples of tutorials, how-to and other pages: what they show is what their commands print.

* A block with a title is a file: ```yaml title="NAME"```.
* A block ```console``` has commands behind `$ `, and what they print on stdout. They run one after
  the other in a folder of the page's own, which has the checkout's `traces` and `sweeps`.
  With `varies` in its first line they measure something in real time: they must succeed, and what
  they print is not compared.
* A block ```bash``` has commands that need what is not here (an engine, GPUs, other machines).

`make docs-update` runs them and writes what they print into the pages.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(DOCS / "tutorials").glob("*.md"),
        *(DOCS / "howto").glob("*.md"),
        DOCS / "tiers.md",
        DOCS / "startup.md",
        DOCS / "scenarios.md",
    ]
)
PROMPT = "$ "
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r'title="([^"]+)"')
_TIMED = re.compile(r"^took .*$", re.MULTILINE)
"""The one line of a run that tells of the machine."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the rest of its first line, its text."""

    language: str
    info: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it shows."""
        found = _TITLE.search(self.info)
        return found[1] if found else None

    @property
    def varies(self) -> bool:
        """Whether its commands measure something in real time."""
        return "varies" in self.info

    def commands(self) -> list[str]:
        """What follows prompts, or every line of a script; continued lines are joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [Block(match[1], match[2], match[3]) for match in _BLOCK.finditer(text)]


def update(page: str, folder: Path) -> str:
    """The page with what its commands print now, run in an empty folder."""
    for name in ("traces", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    parts, end = [], 0
    for match in _BLOCK.finditer(page):
        block = Block(match[1], match[2], match[3])
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        elif block.language == "console":
            parts += [page[end : match.start(3)], "".join(_shown(block, folder))]
            end = match.end(3)
    return "".join([*parts, page[end:]])


def _shown(block: Block, folder: Path) -> Iterator[str]:
    for shown in re.findall(r"^\$ (?:.*\\\n)*.*\n", block.text, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shown.removeprefix(PROMPT)],
            cwd=folder, env=_environment(), capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{shown}{done.stdout}{done.stderr}")
        yield shown + done.stdout


def _environment() -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "COLUMNS": "80", "NO_COLOR": "1"}


def comparable(page: str) -> list[str]:
    """A page's examples without what differs from machine to machine and from time to time."""
    return [
        "\n".join(block.commands()) if block.varies else _TIMED.sub("took ...", block.text)
        for block in blocks_of(page)
    ]


def measures(page: str) -> bool:
    """Whether a page has an example that measures something in real time."""
    return any(block.varies for block in blocks_of(page))
