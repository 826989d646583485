"""The graphs that all tests of clients share."""

from __future__ import annotations

from clients_fixtures import graphs

__all__ = ["graphs"]
