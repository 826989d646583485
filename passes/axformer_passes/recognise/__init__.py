"""From a prepared graph to its anatomy: heads, neurons, blocks and layers, read off classes of channel labels.

Takes a model and a runner, gives an `Anatomy` with the labels that it was read from (`Examined`), and names what was
not recognised.
"""

from __future__ import annotations

from axformer_passes.recognise.branches import added_to
from axformer_passes.recognise.examination import Examined, examine, recognise
from axformer_passes.recognise.labelling import Labelling

__all__ = ["Examined", "Labelling", "added_to", "examine", "recognise"]
