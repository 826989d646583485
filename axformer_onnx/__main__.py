"""`python -m axformer_onnx` is `axformer-onnx`."""

from axformer_onnx.cli import main

if __name__ == "__main__":
    main()
