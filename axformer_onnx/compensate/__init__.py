"""What stays makes up for what goes: second moments, optimal brain surgeon, refits. No gradients.

Takes stage sessions and unlabelled rows; gives weights for a plan.
"""

from __future__ import annotations

from axformer_onnx.compensate.algebra import levels
from axformer_onnx.compensate.classifier_fit import fit_classifier
from axformer_onnx.compensate.moments import Moments, Sample, calibrate, calibrated_blocks, text_samples
from axformer_onnx.compensate.refit_inner import shapes_of
from axformer_onnx.compensate.refit_outputs import Teacher, refit_from
from axformer_onnx.compensate.weights import WEIGHTS, load_weights, save_weights, weights_path

__all__ = [
    "WEIGHTS",
    "Moments",
    "Sample",
    "Teacher",
    "calibrate",
    "calibrated_blocks",
    "fit_classifier",
    "levels",
    "load_weights",
    "refit_from",
    "save_weights",
    "shapes_of",
    "text_samples",
    "weights_path",
]
