"""What all tests share: one thread, quiet libraries, the zoo of tiny models."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zoo import ZooModel

# Before anything imports torch or numpy's BLAS: test processes share the cores, results do not vary.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "slow: takes more than about ten seconds on one core")


@pytest.fixture(scope="session")
def zoo() -> Callable[..., ZooModel]:
    """`zoo("bert", "dynamo-23")`: see tests/zoo.py. Tests that import zoo directly need no fixture."""
    build: Any = pytest.importorskip("zoo", reason="the zoo needs the [export] extra (torch, transformers)").build
    return build  # type: ignore[no-any-return]
