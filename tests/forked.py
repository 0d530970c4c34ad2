"""Commands in forks of a process that has imported the frameworks: most of a short command's time is that import.

Each is a process of its own with its own arguments, environment, streams and exit status. What the product imports
itself is imported by each.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

FRAMEWORKS = ["torch", "torchvision", "torch.onnx", "onnx", "onnxscript", "onnxruntime", "msgspec", "rich.progress"]


@lru_cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked", *FRAMEWORKS])
    return context


def run(*arguments: str, cwd: Path | None, timeout: float) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS…` as subprocess.run would leave it. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        place = str(Path(cwd or ".").resolve())
        child = _context().Process(target=_become, args=(arguments, place, dict(os.environ), str(stdout), str(stderr)))
        child.start()
        child.join(timeout)
        if child.is_alive():
            child.kill()
            child.join()
            raise subprocess.TimeoutExpired(arguments, timeout, stdout.read_text(), stderr.read_text())
        assert child.exitcode is not None
        return subprocess.CompletedProcess(arguments, child.exitcode, stdout.read_text(), stderr.read_text())


def _become(arguments: tuple[str, ...], place: str, environment: Mapping[str, str], stdout: str, stderr: str) -> None:
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    tests = str(Path(__file__).parent)
    sys.path[:] = [place, *(entry for entry in sys.path if entry not in ("", tests))]
    sys.argv, sys.orig_argv[:] = list(arguments), ["python", "-m", *arguments]
    multiprocessing.set_start_method(None, force=True)  # the command's own processes start as they would without us
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing ends without them
