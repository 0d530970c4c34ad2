"""What a shell offers after the script of `python -m runtime completion` was read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import succeed

from runtime.commands import verbs
from runtime.commands.completion import SCRIPTS, modules
from trainers import models

BASH = """
source {script}
COMP_LINE='{line}'
COMP_POINT=${{#COMP_LINE}}
COMP_TYPE=9
read -ra COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_fastform {python} "${{COMP_WORDS[COMP_CWORD]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def offered(line: str, folder: Path) -> set[str]:
    script = folder / "completion.bash"
    script.write_text(succeed("runtime", "completion", "bash").stdout)
    code = BASH.format(script=script, line=line, python=sys.executable)
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed")
def test_bash_completes_modules_verbs_flags_and_models(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "mine").mkdir(parents=True)
    (tmp_path / "artifacts" / "mine" / "checkpoint.json").write_text("{}")
    assert offered("python -m expo", tmp_path) == {name for name in modules() if name.startswith("expo")}
    assert set(verbs()) <= offered("python -m runtime ", tmp_path)
    assert offered("python -m runtime bench --qui", tmp_path) == {"--quick"}
    assert {"mine", *models.names()} <= offered("python -m trainers ", tmp_path)
    assert offered("python -m runtime tune mi", tmp_path) == {"mine"}
    assert offered("python -m http.server ", tmp_path) == set()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish is installed")
def test_fish_completes_verbs_flags_and_models(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "mine").mkdir(parents=True)
    (tmp_path / "artifacts" / "mine" / "checkpoint.json").write_text("{}")
    script = tmp_path / "completion.fish"
    script.write_text(succeed("runtime", "completion", "fish").stdout)

    def words(line: str) -> set[str]:
        code = f"set -p PATH {Path(sys.executable).parent}; source {script}; complete -C {line!r}"
        done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        return {word.split("\t")[0] for word in done.stdout.splitlines()}

    assert set(verbs()) <= words("python -m runtime ")
    assert words("python -m runtime bench --qui") == {"--quick"}
    assert words("python -m runtime tune mi") == {"mine"}


@pytest.mark.parametrize("shell", list(SCRIPTS))
def test_a_script_is_one_that_its_shell_reads(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} is installed")
    script = tmp_path / "script"
    script.write_text(succeed("runtime", "completion", shell).stdout)
    assert "_ARGCOMPLETE" in script.read_text()
    assert subprocess.run([shell, "-n", str(script)], check=False).returncode == 0


def test_every_command_is_offered() -> None:
    assert {"trainers", "trainers.ladder", "export", "export.heat", "runtime"} <= set(modules())
