"""The graphs that all tests of clients share."""

from __future__ import annotations

from clients_fixtures import graphs
from javascript_fixtures import made
from sst2_fixtures import sst2

__all__ = ["graphs", "made", "sst2"]
