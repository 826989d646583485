"""The graphs that all tests of clients share."""

from __future__ import annotations

from clients_fixtures import graphs
from sst2_fixtures import sst2

__all__ = ["graphs", "sst2"]
