"""SST-2, pruned, for tests of real clients. Skips without the data."""

from __future__ import annotations

from pathlib import Path

import pytest
from pruned_sst2 import CHECKPOINT, pruned

import axformer_onnx as ax

WITHIN = {"float32": 2e-5, "int8": 0.1}
"""Of logits that reach about 4; see clients_fixtures for the integers."""


@pytest.fixture(scope="session")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the pruned model, by kind."""
    if not CHECKPOINT.is_dir():
        pytest.skip("needs the shared checkpoints")
    folder = tmp_path_factory.mktemp("sst2")
    return pruned(ax.export(CHECKPOINT, folder / "source", task="sst2").path, folder)
