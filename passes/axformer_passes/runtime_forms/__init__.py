"""Forms that one runtime computes faster than the portable graph: fused attention, packed products. Exact up to rounding.

Takes a finished graph, integers and halves included, and gives a new one; what cannot be shown to be the same stays as it is.
"""

from __future__ import annotations

from axformer_passes.runtime_forms.forms import RUNTIME_FORMS, Rewritten, RuntimeForm

__all__ = ["RUNTIME_FORMS", "Rewritten", "RuntimeForm"]
