"""Tensors of many samples between two stages of a model: in memory up to a bound, beyond it in files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Shelf:
    """Tensors of samples by name: in memory up to a bound, beyond it in files of a folder that goes in the end."""

    def __init__(self, memory_bytes: int) -> None:
        self._bound, self._used, self._files = memory_bytes, 0, 0
        self._held: dict[tuple[int, str], Array | Path] = {}

    def __enter__(self) -> Shelf:
        self._folder = tempfile.TemporaryDirectory(prefix="axformer-calibrate-")
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        self._folder.cleanup()

    def put(self, sample: int, tensors: Mapping[str, Array]) -> None:
        """Keep tensors of one sample."""
        for name, array in tensors.items():
            if self._used + array.nbytes <= self._bound:
                self._used += array.nbytes
                self._held[sample, name] = array
            else:
                path = Path(self._folder.name) / f"{self._files}.npy"
                self._files += 1
                np.save(path, array)
                self._held[sample, name] = path

    def get(self, sample: int, names: Sequence[str]) -> dict[str, Array]:
        """The tensors of one sample that are called so."""
        found = ((name, self._held[sample, name]) for name in names)
        return {name: np.load(held) if isinstance(held, Path) else held for name, held in found}

    def drop(self, sample: int, names: Sequence[str]) -> None:
        """Forget tensors of one sample; those that are not there are passed over."""
        for name in names:
            held = self._held.pop((sample, name), None)
            if isinstance(held, Path):
                held.unlink()
            elif held is not None:
                self._used -= held.nbytes
