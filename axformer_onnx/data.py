"""Rows of a task, and where they come from: the public face of rows.py and roles.py."""

from axformer_onnx.roles import DataRoles, resolve, resolve_report
from axformer_onnx.rows import Rows, read_rows

__all__ = ["DataRoles", "Rows", "read_rows", "resolve", "resolve_report"]
