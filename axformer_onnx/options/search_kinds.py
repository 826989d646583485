"""What the options must know of a search; the searches themselves are in `axformer_onnx.searches`, which registers them here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from axformer_onnx.options.registry import Registry

if TYPE_CHECKING:
    from axformer_onnx.data import DataRoles, Rows


class SearchKind:
    """One way to find a plan, by the name that `--search` gives it.

    name        as in `--search NAME`, in journals and in reports
    help        what it does, as one clause
    decisive    properties of the options that only this search depends on, in the order of the journal's header
    refuses     options that it cannot honour, with the reason as the end of the sentence "--search NAME ..."
    calibrates  unlabelled calibration rows are used
    dequantises a source that comes quantised is worked on in float32: its weights are written anew
    """

    name: str
    help: str
    decisive: tuple[str, ...] = ()
    refuses: Mapping[str, str] = MappingProxyType({})
    calibrates: bool = False
    dequantises: bool = False

    def rows_by_role(self, roles: DataRoles) -> dict[str, Rows]:
        """The rows of each role that this search has, "report" among them."""
        raise NotImplementedError


SEARCHES: Registry[SearchKind] = Registry("search", "axformer_onnx.searches")
