"""What a run of optimize is given: options, the source model, rows and tokens by role."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.data import Encoded, Rows, resolve
from axformer_onnx.errors import RecogniseError, UsageError
from axformer_onnx.inputs.refusals import NOTHING, left_whole
from axformer_onnx.options import SEARCHES, OptimizeOptions
from axformer_onnx.probing import at_its_sizes, open_model, size_note, text_sizes
from axformer_onnx.runtime import run_once
from axformer_onnx.scoring import Reading, provider_warnings, reading_of, truncation_notes
from axformer_passes.anatomy import Anatomy
from axformer_passes.blocks import shared_groups, words
from axformer_passes.io import model_path, settings_folder, sha256_of
from axformer_passes.plan import Padding, SharedWeights

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.recognise import Examined


@dataclasses.dataclass(frozen=True)
class Source:
    """The model to optimize, examined once for all that is done with it. `sample`: an .npz file that it is probed on.

    dequantised   `model` is the float32 form of a file that is quantised
    """

    path: Path
    sha256: str
    model: ir.Model
    examined: Examined
    sample: Path | None = None
    dequantised: bool = False

    @classmethod
    def of(cls, path: Path, sample: Path | None = None, *, dequantise: bool = False) -> Source:
        """Load and examine; in float32 if that is asked for, the file is quantised and has such a form.

        Raises: ModelError, UsageError.
        """
        from axformer_passes.prepare import dequantised
        from axformer_passes.recognise import examine

        given = open_model(path, sample)
        model = dequantised(given) if dequantise else given
        examined = at_its_sizes(model, lambda model: examine(model, run_once))
        return cls(path, sha256_of(path), model, examined, sample, model is not given)

    @property
    def folder(self) -> Path:
        """Of its tokenizer and configuration."""
        return settings_folder(self.path)

    @property
    def anatomy(self) -> Anatomy:
        """Its layers."""
        return self.examined.anatomy


@dataclasses.dataclass(frozen=True)
class Given:
    """Everything that the search and the report need: the source, how it reads the task, rows and tokens by role.

    narrow   the plan narrows the read-out
    padding  what the plan does with it
    runs_on  ONNX Runtime's name of the provider that the source ran on, which may not be the one that was asked for
    """

    source: Source
    reading: Reading
    rows: Mapping[str, Rows]
    encoded: Mapping[str, Encoded]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    narrow: bool = False
    padding: Padding = "kept"
    runs_on: str = ""


def open_source(options: OptimizeOptions) -> Source:
    """Load and recognise. Raises: ModelError, RecogniseError."""
    source = Source.of(model_path(options.model), options.sample, dequantise=SEARCHES[options.search].dequantises)
    if not source.anatomy.layers:
        raise RecogniseError(f"{source.path}: {'; '.join(left_whole(source.anatomy)) or NOTHING}")
    return source


def read_rows(options: OptimizeOptions, source: Source) -> Given:
    """Find the rows of every role and encode them. Raises: DataError, UsageError."""
    roles = resolve(
        options.task,
        model_dir=source.folder,
        data=options.data,
        search_data=options.search_data,
        calibration=options.calibration,
        seed=options.seed,
        max_search_rows=options.max_search_rows,
    )
    session = options.machine.session(source.path)
    reading = reading_of(
        source.folder, session, options.task, roles.report,
        max_length=options.max_length, sizes=text_sizes(source.model),
    )  # fmt: skip
    if options.refit_classifier and reading.task.kind.head_loss is None:
        raise UsageError(
            f"--refit-classifier: a task of kind {reading.task.kind.name} has no labels to fit a classifier to"
        )
    search = SEARCHES[options.search]
    rows = search.rows_by_role(roles)
    encoded = {role: reading.encode(part) for role, part in rows.items()}
    unused = _calibration_note(options)
    shared = _shared_notes(options, source.anatomy)
    if options.refit_classifier:
        unused.append(
            "the classifier was refitted with the labels of the search rows, where that helped (--refit-classifier)"
        )
    scored = [reading.task.kind.note_on(role, rows[role].labels) for role in ("select", "report") if role in rows]
    unused += dict.fromkeys(note for note in scored if note)
    fixed = [note for note in (size_note(source.model), _form_note(options, source)) if note]
    left = [f"left as it is: {line}" for line in left_whole(source.anatomy)]
    notes = (*roles.notes, *unused, *truncation_notes(list(encoded.items())), *fixed, *left, *shared)
    warnings = tuple(provider_warnings(session, options.machine.provider))
    return Given(source, reading, rows, encoded, notes, warnings, runs_on=session.get_providers()[0])


def _calibration_note(options: OptimizeOptions) -> list[str]:
    if options.calibration and not SEARCHES[options.search].calibrates:
        return [f"the calibration rows are not used by --search {options.search}"]
    if options.calibration and options.is_whole:
        return ["the calibration rows are not used by --structure whole, which removes nothing"]
    return []


def with_integers(options: OptimizeOptions, source: Source) -> OptimizeOptions:
    """The options as they will be used: what comes quantised is quantised again, unless another form is asked for."""
    if not source.dequantised or options.quantize is not None or options.half is not None:
        return options
    return options.model_copy(update={"quantize": "int8"})


def _form_note(options: OptimizeOptions, source: Source) -> str:
    if not source.dequantised:
        return ""
    done = {
        True: "quantised again (--quantize int8; --quantize none leaves it in float32)",
        False: f"written in {options.half or 'float32'}",
    }[options.int8 is not None]
    worked = f"the model comes quantised: it is dequantised, cut and refitted in float32, and {done}"
    return f"{worked}; the result is compared with the model as given"


def shared_weights(options: OptimizeOptions, anatomy: Anatomy) -> SharedWeights:
    """What the plan says of weights that layers share; `separate` where no layers do."""
    return (options.shared_weights or "together") if shared_groups(anatomy) else "separate"


def _shared_notes(options: OptimizeOptions, anatomy: Anatomy) -> list[str]:
    consequence = {
        "together": "heads and neurons go in all of them at once (--shared-weights together)",
        "separate": "each is cut by itself and then needs a copy, so the file may grow (--shared-weights separate)",
    }[shared_weights(options, anatomy)]
    return [f"{words(group)}: {consequence}" for group in shared_groups(anatomy)]
