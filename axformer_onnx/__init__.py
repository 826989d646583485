"""axformer-onnx: smaller, faster ONNX transformers that score at least as well."""

__version__ = "0.1.0"
