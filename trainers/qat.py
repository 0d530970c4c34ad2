"""Quantization-aware training: what `--qat` changes in a run, and how its checkpoint becomes a module again.

A checkpoint trained so holds the prepared module's state: weights, norms, and the scale of every quantized place. Its
record holds the settings, from which the same module is built. torchao is asked for only when one is made.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from trainers.manifest import UserError
from trainers.spec import FakeQuantization

if TYPE_CHECKING:
    from torch import nn

SUFFIX = "-qat"  # of the folder's name


def prepare(module: nn.Module, input_shape: tuple[int, int, int], settings: FakeQuantization) -> nn.Module:
    """Put fake quantization into a plain module. Raises UserError when torchao is missing or cannot take it."""
    made: nn.Module = _quantizer().prepare(module, input_shape, settings)
    return made


def convert(module: nn.Module) -> nn.Module:
    """The integer form of a prepared module, for export; `module` is used up."""
    converted: nn.Module = _quantizer().convert(module)
    return converted


def check_installed() -> None:
    """Raises UserError when torchao is missing."""
    _quantizer()


def _quantizer():  # type: ignore[no-untyped-def]
    """`trainers.quantizer`, which imports torchao. Raises UserError when that is not installed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torchao's import tells of deprecations in PyTorch
    try:
        return importlib.import_module("trainers.quantizer")
    except ModuleNotFoundError as error:
        if error.name != "torchao":
            raise
        raise UserError('quantization-aware training needs torchao: pip install -e ".[qat]"') from None
    finally:
        logging.disable(level)
