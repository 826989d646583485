"""Export: a fine-tuned Hugging Face checkpoint becomes a model folder, checked against torch.

    result = export("../checkpoints/mnli", Path("run/mnli"), task="mnli")

The only part of the tool that needs torch and transformers: `pip install 'axformer-onnx[export]'`.
"""

from axformer_onnx.exporting.run import ExportResult, export

__all__ = ["ExportResult", "export"]
