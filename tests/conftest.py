"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Packs, engines and compiled kernels of the tests go to a cache of their own, also for the commands they start."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes: one thread each, or they wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:  # they all inherit it
        os.environ["XDG_CACHE_HOME"] = cache = tempfile.mkdtemp(prefix="fastform-tests-")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; its children would ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A file is one process's work, so a long one that comes last keeps one process busy and leaves the other idle.
LONGEST = ("test_readme.py", "test_tutorial.py", "test_tune.py", "test_line.py", "test_native.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that the others run beside them."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """What a test leaves switched off for its thread, as engines do, the next one has again."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data (mnist-10k, cifar10-jpeg.tar.xz, tiny-imagenet-200.zip) that FASTFORM_DATA names."""
    named = os.environ.get("FASTFORM_DATA")
    if not named:
        pytest.skip("FASTFORM_DATA names no folder of real data")
    return Path(named)
