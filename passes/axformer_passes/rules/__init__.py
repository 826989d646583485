"""The rule table: how each operator carries channel labels. One rule per operator, none per model or exporter.

A rule reads `walk.labels(input)`, may unite or tie labels, and calls `walk.put(output, labels)`.
Data movement is executed on the label arrays themselves, with the concrete integers of the probe run.
docs/adding-an-operator.md shows how a rule is added. Importing this package fills `labels.RULES`.
"""

from axformer_passes.rules import contraction, einsum, elementwise, movement, normalisation, quantised, rotary

__all__ = ["contraction", "einsum", "elementwise", "movement", "normalisation", "quantised", "rotary"]
