"""One model that answers: named tensors in, as a request has them; named tensors out, as its task reads the outputs.

Texts are encoded as `score` encodes them, by the tokenizer and the limit of the model's folder. N rows, C columns of the output.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axformer_onnx.data import Encoded, Rows, batches, read_json
from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.options import ServeOptions
from axformer_onnx.probing import vocabulary_of
from axformer_onnx.runtime import run_session
from axformer_onnx.scoring import Machine, Reading, provider_warnings, reading_of
from axformer_onnx.serving.served_task import served_task
from axformer_onnx.serving.tensors import TEXT, Array, Tensor, TensorSpec
from axformer_passes.io import load_model, settings_folder

PROBABILITIES, LABEL = "probabilities", "label"
"""Outputs beside the graph's own: of every column, and the answer in words."""
_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})


@dataclasses.dataclass(frozen=True)
class Answerer:
    """A session with what its task reads of it.

    name         what clients call the model
    vocabulary   number of token ids; None: not known
    types        number of token type ids; None: not known
    warnings     what whoever starts it must know
    """

    name: str
    session: Any
    reading: Reading
    vocabulary: int | None = None
    types: int | None = None
    warnings: tuple[str, ...] = ()
    _tokenizer: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    @classmethod
    def load(
        cls,
        path: Path,
        machine: Machine,
        *,
        task: str | None = None,
        max_length: int | None = None,
        name: str | None = None,
    ) -> Answerer:
        """The graph at `path`, with the tokenizer and the configuration of its folder.

        task    a name of GLUE's, or a kind of task; None: what the run's report, the graph or its folder states
        name    None: that of its folder

        Raises: ModelError, DataError, UsageError, RuntimeFailure.
        """
        folder, session = settings_folder(path), machine.session(path)
        nothing = Rows((), np.zeros(0), "requests", "")
        found = served_task(folder, session, task)
        reading = reading_of(folder, session, found, nothing, max_length=max_length)
        config = read_json(folder / "config.json")
        types = config.get("type_vocab_size")
        return cls(
            name=name or folder.resolve().name or "model",
            session=session,
            reading=reading,
            vocabulary=vocabulary_of(config) or reading.encoder.tokenizer.get_vocab_size(),
            types=types if isinstance(types, int) and types > 0 else None,
            warnings=(*provider_warnings(session, machine.provider), *_batch_warnings(path)),
        )

    @classmethod
    def of(cls, options: ServeOptions, path: Path) -> Answerer:
        """The same by these options, run once, so that no client waits for what ONNX Runtime does on a first run."""
        found = cls.load(path, options.machine, task=options.task, max_length=options.max_length, name=options.name)
        found.run(found.encode([("a",)]))
        return found

    # -- what it takes and gives ---------------------------------------------------------------------------------------

    @property
    def takes_pairs(self) -> bool:
        """A row may be two texts."""
        return not self.reading.task.kind.apart

    @property
    def texts(self) -> int | None:
        """Texts of a row, as the task has them; None: it does not say."""
        task = self.reading.task
        return 1 if not self.takes_pairs else None if task.name == "custom" else len(task.columns)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the output's columns; empty where they have none."""
        found = self.reading.label_map
        if not self.reading.task.kind.named:
            return ()
        return tuple(name for _, name in sorted(zip(found.order, found.names, strict=True)))

    @property
    def output(self) -> str:
        """What the output is called."""
        read = self.reading.output
        return read.name if read.positions == "row" else "sentence_embedding"

    def inputs(self) -> list[TensorSpec]:
        """Texts, or in their place what the graph is fed."""
        tokens = [TensorSpec(name, "INT64", (-1, -1)) for name in self.token_inputs]
        texts = ["text", "text_pair"] if self.takes_pairs else ["text"]
        return [*(TensorSpec(name, TEXT, (-1,)) for name in texts), *tokens]

    @property
    def token_inputs(self) -> tuple[str, ...]:
        """Those that a client may give as ids; positions are counted here."""
        asked = {one.name for one in self.session.get_inputs()}
        spelled = (("input_ids",), ("attention_mask", "input_mask"), ("token_type_ids", "segment_ids"))
        return tuple(names[0] for names in spelled if asked.intersection(names))

    def outputs(self) -> list[TensorSpec]:
        """The graph's own, then what the task reads off it."""
        columns, kind = self.reading.output.columns or -1, self.reading.task.kind
        found = [TensorSpec(self.output, "FP32", (-1, columns))]
        if kind.probabilities(np.zeros((1, 2))) is not None:
            found.append(TensorSpec(PROBABILITIES, "FP32", (-1, columns)))
        return [*found, TensorSpec(LABEL, TEXT, (-1,))] if kind.named else found

    # -- answers -------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[tuple[str, ...]]) -> Encoded:
        """Tokens of rows of one or two texts. Safe in several threads."""
        rows = Rows(tuple(texts), np.zeros(len(texts)), "requests", "")
        with self._tokenizer:  # truncation is a state of the tokenizer
            return self.reading.encode(rows)

    def run(self, encoded: Encoded) -> Array:
        """float32[sequences, C], of one run where the graph takes them together.

        Raises: RuntimeFailure where ONNX Runtime refuses, or the model puts out nan or infinity.
        """
        output, names = self.reading.output, [one.name for one in self.session.get_inputs()]
        parts: list[tuple[Array, Array]] = []
        for batch in batches(encoded, names, batch_size=len(encoded)):
            found = output.read(run_session(self.session, batch.feeds, [output.name])[output.name], batch.mask)
            parts.append((batch.rows, found))
        outputs = np.zeros((len(encoded), parts[0][1].shape[-1]), dtype=np.float32)
        for rows, found in parts:
            outputs[rows] = found
        if not np.isfinite(outputs).all():
            raise RuntimeFailure("the model puts out nan or infinity")
        return outputs

    def answers(self, outputs: Array, encoded: Encoded) -> list[Tensor]:
        """The tensors of `self.outputs()` for the outputs [sequences, C] of these rows."""
        kind, label_map = self.reading.task.kind, self.reading.label_map
        rows = kind.of_sequences(outputs, encoded.owner)
        rows = rows.reshape(len(rows), -1)
        found = [Tensor(self.output, "FP32", rows)]
        probabilities = kind.probabilities(rows)
        if probabilities is not None:
            found.append(Tensor(PROBABILITIES, "FP32", probabilities.astype(np.float32)))
        if kind.named:
            found.append(Tensor(LABEL, TEXT, np.array(kind.in_words(rows, label_map), dtype=object)))
        return found


def _batch_warnings(path: Path) -> list[str]:
    """A sentence where a row's answer depends on what else is in its batch."""
    if not any(node.op_type in _DYNAMIC for node in load_model(path).graph.all_nodes()):
        return []
    return [
        "the graph rounds activations to integers by the range of a whole batch, so an answer depends a little on the rows that "
        "share its batch; --max-batch 1 makes answers repeatable, optimize --activations static makes a graph without this"
    ]
