"""Models as they are opened: with what their inputs are made of, from a tokenizer, a configuration or a sample.

Takes the path of a model, and of a sample; gives a model that every pass can run on inputs that it takes.
"""

from __future__ import annotations

from axformer_onnx.probing.opening import open_model
from axformer_onnx.probing.sizes import at_its_sizes, size_note, text_sizes
from axformer_onnx.probing.texts import recipe_in, spoken, vocabulary_of

__all__ = ["at_its_sizes", "open_model", "recipe_in", "size_note", "spoken", "text_sizes", "vocabulary_of"]
