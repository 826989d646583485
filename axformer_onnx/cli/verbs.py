"""The subcommands, a line each. A subcommand `x` is the object `command` of `subcommands/x.py`, imported when it is called."""

from __future__ import annotations

VERBS = {
    "export": "Write a checkpoint to OUT/model.onnx, checked against torch.",
    "inspect": "Show layers, heads, neurons, and what was not recognised.",
    "optimize": "Find what a model can do without, and write it smaller.",
    "apply": "Replay a plan: the same PLAN and MODEL give the same bytes.",
    "report": "Show a finished run again, and write its page, report.html.",
    "score": "Score a model, or two against each other.",
    "compare": "Hold a model against a baseline, with gates for CI.",
    "deploy": "Write the folder that a server or a library reads.",
    "serve": "Answer requests over HTTP, and a page to try the model on.",
}
