"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data (mnist-10k, cifar10-jpeg.tar.xz, tiny-imagenet-200.zip) that FASTFORM_DATA names."""
    named = os.environ.get("FASTFORM_DATA")
    if not named:
        pytest.skip("FASTFORM_DATA names no folder of real data")
    return Path(named)
