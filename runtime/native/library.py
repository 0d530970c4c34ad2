"""The kernels, compiled for this processor by the system's C++ compiler and kept in the user's private cache."""

from __future__ import annotations

import ctypes
import enum
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from runtime import engine_cache
from runtime.backend import BackendError
from trainers import manifest

FLAGS = (
    "-std=c++20", "-O3", "-march=x86-64-v4", "-mavx512vnni", "-mavx512vbmi", "-mtune=native", "-shared", "-fPIC",
    "-pthread", "-static-libstdc++", "-static-libgcc", "-w",
)  # fmt: skip
BF16 = "avx512_bf16"
NEEDED = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512vbmi")
HERE = Path(__file__).parent


class Kind(enum.IntEnum):
    """`Kind` of op.h."""

    QUANTIZE = 0
    CONVOLUTION = 1
    PRODUCT = 2
    DEPTHWISE = 3
    STATISTICS = 4
    NORM = 5
    MAXIMUM = 6
    MEAN = 7


class Op(ctypes.Structure):
    """`Op` of op.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "kind", "images", "height", "width", "channels", "depth", "taps", "kernel_height", "kernel_width",
            "stride_height", "stride_width", "in_channels", "multiplier", "in_row", "in_block", "in_image", "out_row",
            "out_block", "out_image", "residual_block", "wide", "half", "added", "quantized", "zero",
            "residual_zero", "out_zero",
        )),
        *((name, ctypes.c_float) for name in ("scale", "residual_scale", "out_scale", "epsilon")),
        *((name, ctypes.c_void_p) for name in (
            "source", "target", "residual", "weights", "multipliers", "bias", "table", "in_offsets", "tap_offsets",
            "out_offsets", "residual_offsets", "sums",
        )),
    )  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler: $CXX, or what the system calls one."""
    return next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name
                 and (found := shutil.which(name))), None)  # fmt: skip


def unusable() -> str | None:
    """Why the kernels cannot be compiled or run here, in one line; None when they can."""
    if platform.machine() not in ("x86_64", "AMD64") or not Path("/proc/cpuinfo").is_file():
        return "its kernels are for x86-64 processors under Linux"
    missing = [flag for flag in NEEDED if flag not in _flags()]
    if missing:
        return f"its kernels need a processor with AVX-512 VNNI and VBMI; this one has no {', '.join(missing)}"
    if compiler() is None:
        return "no C++ compiler found; install g++, or name one by CXX"
    return None


def has_bf16() -> bool:
    """Whether the processor multiplies bf16: not all that have VNNI do."""
    return BF16 in _flags()


@functools.cache
def _flags() -> frozenset[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def load() -> Any:
    """The compiled kernels. Raises BackendError with the compiler's own first error."""
    library = ctypes.CDLL(str(path()))
    library.native_open.restype = ctypes.c_void_p
    library.native_run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64))
    library.native_run.restype = library.native_close.restype = None
    library.native_close.argtypes = (ctypes.c_void_p,)
    assert library.native_size_of_op() == ctypes.sizeof(Op), "op.h and Op have the same fields"
    return library


def path() -> Path:
    """Where the library lies: made at the first call, for these sources, this compiler and this processor."""
    sources = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")])
    text = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    machine = (manifest.cpu(), " ".join(sorted(_flags())))
    made = engine_cache.path("native", ".so", text, " ".join(_options()), str(compiler()), *machine)
    if not made.is_file():
        _compile(made)
    return made


def _options() -> tuple[str, ...]:
    return (*FLAGS, "-mavx512bf16") if has_bf16() else FLAGS


def _compile(made: Path) -> None:
    program = compiler()
    if program is None:
        raise BackendError("no C++ compiler found; install g++, or name one by CXX")
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".build-") as folder:
        built = Path(folder) / made.name
        done = subprocess.run([program, *_options(), str(HERE / "native.cpp"), "-o", str(built)],
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode:
            errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
            raise BackendError(f"{program} cannot compile the kernels: {(errors or ['no error said'])[0]}")
        built.replace(made)
