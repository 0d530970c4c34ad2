"""python -m runtime completion: what makes a shell complete these commands."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from trainers.cli import OK

SUMMARY = "print what makes bash, zsh or fish complete python -m trainers, export and runtime"
EXAMPLES = """\
examples:
  python -m runtime completion bash >> ~/.bashrc
  python -m runtime completion zsh >> ~/.zshrc                  after compinit
  python -m runtime completion fish > ~/.config/fish/conf.d/fastform.fish
"""
PACKAGES = ("trainers", "export", "runtime")
# The command itself finds the words (argcomplete), when it is started with these variables and descriptor 8 open.
ASKED = "8>&1 9>/dev/null 1>/dev/null 2>/dev/null </dev/null"
SCRIPTS = {
    "bash": """\
_fastform() {
    local command=$1 module=${COMP_WORDS[2]-} known=" {modules} "
    [[ ${COMP_WORDS[1]-} == -m ]] || return
    if (( COMP_CWORD == 2 )); then
        COMPREPLY=($(compgen -W "$known" -- "$2"))
        return
    fi
    [[ $known == *" $module "* ]] || return
    local IFS=$'\\013'
    COMPREPLY=($(IFS="$IFS" COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_TYPE="$COMP_TYPE" \\
        _ARGCOMPLETE_COMP_WORDBREAKS="$COMP_WORDBREAKS" _ARGCOMPLETE=3 _ARGCOMPLETE_SHELL=bash \\
        "$command" -m "$module" {asked}))
    compopt -o nospace 2>/dev/null  # the words bring their own spaces
}
complete -o default -o bashdefault -F _fastform python python3
""",
    "zsh": """\
_fastform() {
    local module=${words[3]} known=" {modules} "
    if [[ ${words[2]} != -m ]]; then _default; return; fi
    if (( CURRENT == 3 )); then compadd -- ${=known}; return; fi
    if [[ $known != *" $module "* ]]; then _default; return; fi
    local IFS=$'\\013'
    local found=($(IFS="$IFS" COMP_LINE="$BUFFER" COMP_POINT="$CURSOR" _ARGCOMPLETE=3 _ARGCOMPLETE_SHELL=zsh \\
        _ARGCOMPLETE_SUPPRESS_SPACE=1 ${words[1]} -m $module {asked}))
    _describe "$module" found
}
compdef _fastform python python3
""",
    "fish": """\
function __fastform
    set -l given (commandline -opc)
    test "$given[2]" = -m; and contains -- "$given[3]" {modules}; or return
    set -lx _ARGCOMPLETE 3
    set -lx _ARGCOMPLETE_DFS \\t
    set -lx _ARGCOMPLETE_IFS \\n
    set -lx _ARGCOMPLETE_SUPPRESS_SPACE 1
    set -lx _ARGCOMPLETE_SHELL fish
    set -lx COMP_LINE (commandline -p)
    set -lx COMP_POINT (string length -- (commandline -cp))
    set -lx COMP_TYPE
    $given[1] -m $given[3] {asked}
end
complete --command python --command python3 --arguments '(__fastform)'
complete --command python --command python3 --short-option m --exclusive --arguments '{modules}'
""",
}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS))


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(SCRIPTS[arguments.shell].replace("{modules}", " ".join(modules())).replace("{asked}", ASKED), end="")
    return OK


def modules() -> list[str]:
    """What can be run by `python -m`: the packages, and those of their modules that are commands to type."""
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None, "it is installed beside this one"
        files = sorted(Path(spec.origin).parent.glob("*.py"))
        commands = [file.stem for file in files if file.read_text(encoding="utf-8").startswith('"""python -m ')]
        found += [package, *(f"{package}.{name}" for name in commands if name != "__main__")]
    return found
