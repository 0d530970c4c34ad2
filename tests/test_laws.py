"""The structure's laws: who may import whom, and what starting a command may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"trainers": set(), "export": {"trainers"}, "runtime": {"trainers", "export"}}
COMMANDS = [
    "trainers", "trainers.cache", "trainers.ladder", "trainers.sweep", "trainers.experiments", "export",
    "export.check", "export.diff", "export.gelu", "export.list", "export.ops", "export.sensitivity",
    "runtime", "runtime bench", "runtime build", "runtime compare", "runtime profile", "runtime roofline",
    "runtime tune", "runtime view",
]  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_nobody_imports_downstream(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package] | {package}, path


def test_every_folder_of_modules_is_a_package() -> None:
    """The installation finds packages by their __init__.py."""
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_framework(command: str) -> None:
    """What makes `--help` slow is an import; this names it. The time itself is measured in benchmarks/startup.py."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = {['x', *command.split()[1:], '--help']!r}\n"
        "try:\n"
        f"    runpy.run_module({command.split()[0]!r}, run_name='__main__')\n"
        "except SystemExit as leaving:\n"
        "    status = leaving.code or 0\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'numpy', 'rich', 'matplotlib', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert done.stderr.strip().splitlines()[-1] == "[]"
