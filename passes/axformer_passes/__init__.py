"""Graph in, graph out: recognition by labels and passes over ONNX transformers. No sessions, no data."""
