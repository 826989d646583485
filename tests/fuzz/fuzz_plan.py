"""Coverage-guided fuzzing of the plan reader: only PlanError comes out, and what is accepted is written as it was read.

python fuzz_plan.py [options of libFuzzer] CORPUS
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["axformer_passes.plan", "json"]):
    from axformer_passes.errors import PlanError
    from axformer_passes.plan import Plan


def read(data: bytes) -> None:
    """One input."""
    try:
        plan = Plan.loads(data.decode("utf-8", errors="surrogateescape"))
    except PlanError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error), f"{len(str(error))} characters: {str(error)[:1000]!r}"
        return
    text = plan.dumps()  # empty lists are left out
    assert Plan.loads(text).dumps() == text


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
