"""What makes bash, zsh and fish ask `dynosim` for completions, and where they look for it."""

import os
from pathlib import Path

SHELL = "_DYNOSIM_COMPLETION"
"""The environment variable by which a shell asks; its value is the shell's name."""

# Bash takes a word to begin behind the last "=" or ":", so what stands before is cut off.
_BASH = """\
_dynosim_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" prefix word
    local -a found
    mapfile -t found < <(_DYNOSIM_COMPLETION=bash _DYNOSIM_LINE="$line" "$1" 2>/dev/null)
    word="${line##*[[:space:]]}"
    prefix=""
    if [[ $word == *[=:]* ]]; then prefix="${word%"${word##*[=:]}"}"; fi
    COMPREPLY=("${found[@]#"$prefix"}")
    if [[ ${#found[@]} -eq 1 && ${found[0]} == *[=/] ]]; then compopt -o nospace; fi
}
complete -F _dynosim_completion dynosim
"""

_ZSH = """\
#compdef dynosim
_dynosim() {
    local -a found open whole
    local one
    found=("${(@f)$(_DYNOSIM_COMPLETION=zsh _DYNOSIM_LINE="${(j: :)words[1,CURRENT]}" \\
        ${words[1]} 2>/dev/null)}")
    for one in $found; do
        if [[ $one == *[=/] ]]; then open+=("$one"); else whole+=("$one"); fi
    done
    [[ ${#open} -gt 0 ]] && compadd -S '' -a open
    [[ ${#whole} -gt 0 ]] && compadd -a whole
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _dynosim "$@"
else
    compdef _dynosim dynosim
fi
"""

_FISH = """\
function __dynosim_complete
    set -lx _DYNOSIM_COMPLETION fish
    set -lx _DYNOSIM_LINE (commandline -cp | string collect)
    set -l command (commandline -opc)
    $command[1] 2>/dev/null
end
complete --command dynosim --no-files --arguments '(__dynosim_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_ZSH_START = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"


def install(shell: str) -> list[Path]:
    """Put the script where the shell finds it; returns the files that were written."""
    home = Path.home()
    if shell == "fish":
        base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return [_written(base / "fish" / "completions" / "dynosim.fish", _FISH)]
    if shell == "zsh":
        script = _written(home / ".zfunc" / "_dynosim", _ZSH)
        return [script, *_with_line(home / ".zshrc", _ZSH_START)]
    script = _written(home / ".bash_completions" / "dynosim.sh", _BASH)
    return [script, *_with_line(home / ".bashrc", f"source '{script}'")]


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _with_line(path: Path, line: str) -> list[Path]:
    """The file, with the line at its end unless it has it already."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if line in text.splitlines():
        return []
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n")
    return [path]
