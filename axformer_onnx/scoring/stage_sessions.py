"""Sessions of the stages of a model, and the setting of every stage under a plan."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.blocks import GatedBlock, expanded
from axformer_passes.io import Detached
from axformer_passes.plan import Plan
from axformer_passes.probe import BFLOAT16, widened_model
from axformer_passes.recognise import Examined, examine
from axformer_passes.stages import NO_K, Form, Stage, Staged

Array = npt.NDArray[Any]

BATCH_SIZE, BATCH_TOKENS = 64, 1024
"""Rows and tokens of one batch: small enough that a block's activations stay in a core's cache."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one stage runs under a plan: its form and its run-time inputs.

    key   names the feeds, where they are too large to be read for a digest; empty: they are read
    int8  as its products of integers compute: by the sessions of the model that rounds (`StageSessions.rounded`)
    """

    form: Form
    feeds: Mapping[str, Array]
    key: str = ""
    int8: bool = False

    @cached_property
    def digest(self) -> bytes:
        """Equal settings, equal digests."""
        form = f"{self.form} int8" if self.int8 else self.form
        if self.key:
            return hashlib.blake2b(f"{form} {self.key}".encode(), digest_size=16).digest()
        found = hashlib.blake2b(form.encode(), digest_size=16)
        for name, array in sorted(self.feeds.items()):
            found.update(name.encode() + array.tobytes())
        return found.digest()


def setting_of(stage: Stage, plan: Plan) -> Setting:
    """The setting of one stage under `plan`, each layer's ids written out (`blocks.expanded`)."""
    touched = [block for block in stage.blocks if _touched(block, plan)]
    if not touched:
        return Setting("plain", {})
    if stage.can_bypass and _removed(stage.blocks[0], plan):
        return Setting("bypass", {})
    feeds: dict[str, Array] = {}
    for block in stage.blocks:
        feeds.update(_gates(block, plan))
    return Setting("gated", feeds)


def _removed(block: GatedBlock, plan: Plan) -> bool:
    blocks = plan.attention_blocks if block.kind == "attention" else plan.feed_forward_blocks
    return block.layer in blocks


def _dropped(block: GatedBlock, plan: Plan) -> frozenset[int]:
    parts = plan.heads if block.kind == "attention" else plan.neurons
    return parts.get(block.layer, frozenset())


def _touched(block: GatedBlock, plan: Plan) -> bool:
    hard = block.kind == "attention" and block.layer in plan.hard_attention
    return hard or _removed(block, plan) or bool(_dropped(block, plan))


def _gates(block: GatedBlock, plan: Plan) -> dict[str, Array]:
    dtype = np.dtype(block.dtype)
    gate = np.ones(block.width, dtype)
    for i in _dropped(block, plan):
        gate[list(block.positions[i])] = 0
    feeds: dict[str, Array] = {block.gate: gate}
    if block.on is not None:
        feeds[block.on] = np.full(1, 0 if _removed(block, plan) else 1, dtype)
    hard = plan.hard_attention.get(block.layer) if block.kind == "attention" else None
    for mode, name in block.k.items():
        feeds[name] = np.array([hard.k if hard is not None and hard.mode == mode else NO_K], dtype=np.int64)
    return feeds


class StageSessions:
    """The sessions of one model's stages on one provider; each is made when it is first needed.

    On the CPU a session has one thread, and `workers` batches run side by side, which beats threads inside an operator for the
    short sequences of text tasks. On other providers one batch runs at a time. bfloat16 models run as their float32 twins: NumPy
    has no bfloat16 to hand over. `optimize` False switches off ONNX Runtime's rewrites, `prepack` False its
    own copies of the weights.

    examined   of `model`, where the caller has it
    rounded    the same of the model that computes as integers will; None: nothing is to be rounded
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        optimize: bool = True,
        prepack: bool = True,
        examined: Examined | None = None,
    ) -> None:
        from axformer_onnx.runtime import provider_name, run_once

        self.model, twin = model, widened_model(model, BFLOAT16)
        self.staged = Staged(examined if examined and twin is model else examine(twin, run_once))
        self._examined = self.staged.examined if twin is model else examined
        self.provider, self._optimize, self._prepack = provider, optimize, prepack
        on_cpu = provider_name(provider) == "CPUExecutionProvider"
        self.workers = (threads or os.cpu_count() or 1) if on_cpu else 1
        self._session_threads = 1 if on_cpu else threads
        self._sessions: dict[tuple[int, Form], Any] = {}
        self.rounded: StageSessions | None = None

    @cached_property
    def examined(self) -> Examined:
        """Of `model`; where that is bfloat16, the stages are those of another one."""
        from axformer_onnx.runtime import run_once

        if self._examined is None:
            self._examined = examine(self.model, run_once)
        return self._examined

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        return self.staged.stages

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the source graph's inputs."""
        return self.staged.graph_inputs

    def settings(self, plan: Plan) -> list[Setting]:
        """The setting of every stage under `plan`, in order; what layers share counts as the plan says."""
        plan = expanded(plan, self.staged.examined.anatomy)
        return [setting_of(stage, plan) for stage in self.stages]

    def of(self, setting: Setting) -> StageSessions:
        """Those that a setting runs on."""
        if not setting.int8:
            return self
        assert self.rounded is not None, "there is no model that rounds"
        return self.rounded

    def session(self, stage: Stage, form: Form) -> Any:
        """The session of `stage` in `form`."""
        key = (stage.index, form)
        if key not in self._sessions:
            self._sessions[key] = self.made(self.staged.detached(stage, form), _words(stage, form))
        return self._sessions[key]

    def run(self, stage: Stage, form: Form, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of `stage` in `form` by name; `tensors` holds its inputs, perhaps among others. Raises: RuntimeFailure."""
        from axformer_onnx.runtime import run_session

        return run_session(self.session(stage, form), tensors, stage.outputs)

    def part(
        self,
        stage: Stage,
        form: Form,
        outputs: Sequence[str],
        *,
        given: Sequence[str] = (),
        tensors: Mapping[str, Array] | None = None,
    ) -> Any:
        """A session of what makes `outputs`, tensors of a stage in `form`, of the stage's inputs. It is not kept.

        given     tensors of its inside that are inputs, too: what makes them is left out
        tensors   other initializers, by name; those that are not the stage's are passed over
        """
        between = dataclasses.replace(stage, inputs=(*stage.inputs, *given), outputs=tuple(outputs))
        return self.made(_with(self.staged.detached(between, form), tensors or {}), f"part of {_words(stage, form)}")

    def forget(self) -> None:
        """Close the sessions: each holds its stage's weights. They are made again when they are needed."""
        self._sessions.clear()
        if self.rounded is not None:
            self.rounded.forget()

    def made(self, piece: Detached, what: str) -> Any:
        """A session of a piece of the graph, made as all are; `what` it is in messages. It is not kept."""
        from axformer_onnx.runtime import make_session

        return make_session(
            piece,
            what=what,
            provider=self.provider,
            threads=self._session_threads,
            optimize=self._optimize,
            prepack=self._prepack,
            one_arena=True,
        )


def _words(stage: Stage, form: Form) -> str:
    """A stage in messages: "stage 3 of the model (attention of layer 1), gated"."""
    blocks = ", ".join(f"{block.kind.replace('_', '-')} of layer {block.layer}" for block in stage.blocks)
    return f"stage {stage.index} of the model ({blocks or 'no block'}), {form}"


def _with(piece: Detached, tensors: Mapping[str, Array]) -> Detached:
    """The same piece with other initializers, written into its graph."""
    for stub in piece.proto.graph.initializer:
        if stub.name in tensors:
            stub.CopyFrom(onnx.numpy_helper.from_array(tensors[stub.name], stub.name))
    return Detached(piece.proto, piece.folder, {n: t for n, t in piece.weights.items() if n not in tensors})


def read_by_later(stages: tuple[Stage, ...]) -> list[set[int]]:
    """For each stage s: the stages before s whose outputs s or a later stage reads."""
    maker = {name: stage.index for stage in stages for name in stage.outputs}
    return [
        {maker[n] for later in stages[s:] for n in later.inputs if n in maker and maker[n] < s}
        for s in range(len(stages))
    ]
