"""What `bench/guard.py` measures and `bench/moved.py` compares: figures of this project, one room of helpers.

figures   one figure, with what is noise in it, and whether it may only get better
counted   searches without a stopwatch
searches  quality at each operating point, work, seconds, memory
startup   `axformer-onnx --help`
growth    passes on ever deeper graphs
moves     two results of like machines: what moved beyond noise
"""
