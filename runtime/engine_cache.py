"""The user's cache folder for what engines compile: TensorRT engines, AOTInductor packages, the compilers' own caches.

To load any of it is to run it: native code, and in PyTorch's cache pickles. So its folders are the user's own and
private (mode 0700), and nothing comes into them but what was compiled here. Deleting them costs time only.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from runtime.backends import gpu
from trainers import manifest
from trainers.dataset import cache_folder
from trainers.manifest import UserError

FOLDER = "engines"


def folder(kind: str) -> Path:
    """The private folder for one kind of engine. Raises UserError when it is another user's."""
    made = cache_folder() / FOLDER
    for place in (made, made / kind):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
            raise UserError(f"{place} is another user's, and what lies there would be run; set XDG_CACHE_HOME")
        place.chmod(0o700)
    return made / kind


def path(kind: str, suffix: str, *key: str) -> Path:
    """Where an engine lies, named by all that it depends on."""
    digest = hashlib.sha256("|".join(key).encode()).hexdigest()
    return folder(kind) / f"{digest[:32]}{suffix}"


def hardware(device: str) -> str:
    """What an engine for `device` was compiled for: the first GPU and its driver, or the processor."""
    return (gpu() or "").split("; ")[0] if device == "cuda" else manifest.cpu()
