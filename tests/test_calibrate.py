"""Second moments against torch's hooks and NumPy's plain sum, whatever the exporter made of the layout; padding left out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from zoo import FAMILY, VOCAB, Feeds, Record, ZooModel, build, unwrapped

from axformer_onnx.compensate.moments import Moments, Sample, calibrate, text_samples
from axformer_onnx.data.encoding import Encoded
from axformer_onnx.data.tokenizer_files import Padding
from axformer_onnx.errors import DataError, RecogniseError
from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.io.files import load_model
from axformer_passes.recognise.examination import recognise

Array = npt.NDArray[Any]
Place = tuple[int, str]
TOLERANCE = 1e-5
"""Of the largest entry: graph and torch compute in float32."""
FAMILIES = (
    "bert", "gpt2", "xlnet", "albert", "llama", "vit", "t5-encoder", "mobilebert", "deberta-v2", "modernbert", "wav2vec2",
)  # fmt: skip
EXPORTERS = ("torchscript-eager-17", "dynamo-20")
SHAPES = ((2, 7), (3, 4), (1, 1), (3, 3))


def torch_inputs(model: ZooModel, feeds: Feeds) -> dict[Place, Array]:
    """What each output projection reads, float32[B, S, R], by a hook on the torch module."""
    found: dict[Place, Array] = {}
    with contextlib.ExitStack() as stack:
        for index, record in enumerate(model.records):
            if record.heads:
                _note(stack, model, record.output, record, (index, "attention"), found)
            if record.neurons:
                _note(stack, model, record.down, record, (index, "feed_forward"), found)
        model.logits(feeds)
    if model.family == "xlnet":  # tokens first
        return {place: x.transpose(1, 0, *range(2, x.ndim)).reshape(*x.shape[1::-1], -1) for place, x in found.items()}
    return found


def _note(
    stack: contextlib.ExitStack, model: ZooModel, name: str, record: Record, place: Place, into: dict[Place, Array]
) -> None:
    part = unwrapped(model.module).get_submodule(name)
    calls = [0]

    def note(x: torch.Tensor) -> None:
        if calls[0] == record.call:
            into[place] = x.detach().numpy()
        calls[0] += 1

    if not hasattr(part, "post_attention"):
        stack.callback(part.register_forward_pre_hook(lambda _, inputs: note(inputs[0])).remove)
        return
    plain = part.post_attention  # XLNet: the product with the output weight is no module of its own

    def noting(h: Any, context: Any, *rest: Any, **more: Any) -> Any:
        note(context)
        return plain(h, context, *rest, **more)

    part.post_attention = noting
    stack.callback(delattr, part, "post_attention")


def real_tokens(feeds: Feeds) -> Array | None:
    return feeds["attention_mask"].astype(bool) if "attention_mask" in feeds else None


def expected(model: ZooModel, samples: Sequence[Sample]) -> dict[Place, Array]:
    """Sum of z z^T, z with a constant 1, in float64."""
    sums: dict[Place, Array] = {}
    for sample in samples:
        for place, x in torch_inputs(model, dict(sample.feeds)).items():
            tokens = x[sample.real] if sample.real is not None else x.reshape(-1, x.shape[-1])
            z = np.hstack([tokens.astype(np.float64), np.ones((len(tokens), 1))])
            sums[place] = sums.get(place, 0) + z.T @ z
    return sums


def assert_moments(found: Sequence[Moments], wanted: dict[Place, Array]) -> None:
    assert [(m.layer, m.kind) for m in found] == sorted(wanted), "each block once, in order"
    for one in found:
        matrix = wanted[one.layer, one.kind]
        assert one.matrix.dtype == np.float64 and one.matrix.shape == matrix.shape
        np.testing.assert_array_equal(one.matrix, one.matrix.T)
        assert one.tokens == one.matrix[-1, -1] == matrix[-1, -1]
        np.testing.assert_allclose(one.matrix, matrix, rtol=0, atol=TOLERANCE * np.abs(matrix).max())


@pytest.mark.matrix
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_what_torch_puts_into_the_projections(family: str, exporter: str) -> None:
    if FAMILY[family].reason(exporter):
        pytest.skip(str(FAMILY[family].reason(exporter)))
    model = build(family, exporter)
    samples = []
    for seed, (batch, length) in enumerate(SHAPES):
        feeds = model.feeds(batch, length, seed=seed)
        samples.append(Sample(feeds, real_tokens(feeds)))
    sessions = StageSessions(load_model(model.path), threads=1)
    assert_moments(list(calibrate(sessions, samples)), expected(model, samples))


@pytest.mark.parametrize(
    "exporter", ["torchscript-eager-17+ort", "torchscript-eager-17+transposed", "dynamo-20+ortfusions"]
)
def test_fused_and_rearranged_graphs_give_the_same_moments(exporter: str) -> None:
    model = build("bert", exporter)
    feeds = model.feeds(3, 6)
    samples = [Sample(feeds, real_tokens(feeds))]
    sessions = StageSessions(load_model(model.path), threads=1)
    assert_moments(list(calibrate(sessions, samples)), expected(model, samples))


def test_a_quantised_projection_gives_the_moments_of_the_floats_before_it() -> None:
    model = build("bert", "torchscript-eager-17+int8")
    feeds = model.feeds(3, 6)
    found = list(calibrate(StageSessions(load_model(model.path), threads=1), [Sample(feeds, real_tokens(feeds))]))
    wanted = expected(model, [Sample(feeds, real_tokens(feeds))])
    for one in found:
        matrix = wanted[one.layer, one.kind]
        np.testing.assert_allclose(one.matrix, matrix, rtol=0, atol=0.2 * np.abs(matrix).max())


def encoded(rows: int = 37, side: str = "right") -> Encoded:
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 15, rows))])
    ids = rng.integers(5, VOCAB, offsets[-1])
    return Encoded(ids, np.zeros_like(ids), offsets, 0, 64, Padding(0, 0, side))


def row_by_row(text: Encoded) -> list[Sample]:
    """One row a sample: no padding."""
    samples = []
    for row in range(len(text)):
        ids = text.ids[None, text.offsets[row] : text.offsets[row + 1]]
        samples.append(Sample({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}))
    return samples


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_text_count_their_own_tokens_and_no_padding(side: str) -> None:
    model = build("gpt2" if side == "left" else "bert", "torchscript-eager-17")
    sessions = StageSessions(load_model(model.path), threads=1)
    text = encoded(side=side)
    samples = text_samples(text, sessions.input_names, batch_size=8)
    assert any(s.real is not None and not s.real.all() for s in samples)
    assert sum(int(s.real.sum()) for s in samples if s.real is not None) == len(text.ids)
    found = list(calibrate(sessions, samples))
    assert {one.tokens for one in found} == {len(text.ids)}
    if side == "right":  # GPT-2 with padding on the left has other positions
        assert_moments(found, expected(model, row_by_row(text)))


def test_workers_and_memory_change_no_bit() -> None:
    model = build("albert", "torchscript-eager-17")
    text = encoded()
    results = []
    for threads, memory in ((1, 2**30), (3, 2**30), (1, 0), (2, 20_000)):
        sessions = StageSessions(load_model(model.path), threads=threads)
        samples = text_samples(text, sessions.input_names, batch_size=4)
        results.append(list(calibrate(sessions, samples, memory_bytes=memory)))
    for other in results[1:]:
        assert len(other) == len(results[0])
        for one, two in zip(results[0], other, strict=True):
            assert (one.layer, one.kind, one.tokens) == (two.layer, two.kind, two.tokens)
            np.testing.assert_array_equal(one.matrix, two.matrix)


def test_moments_are_handed_out_block_by_block_in_the_order_of_the_anatomy() -> None:
    model = build("mobilebert", "torchscript-eager-17")
    sessions = StageSessions(load_model(model.path), threads=1)
    anatomy = recognise(load_model(model.path), run_once)
    feeds = model.feeds(2, 5)
    stream = calibrate(sessions, [Sample(feeds, real_tokens(feeds))])
    first = next(stream)
    assert (first.layer, first.kind) == (0, "attention")
    rest = [(m.layer, m.kind) for m in stream]
    kinds = ("attention", "feed_forward")
    assert [(0, "attention"), *rest] == [(x.index, k) for x in anatomy.layers for k in kinds if getattr(x, k)]


def test_what_cannot_be_calibrated_is_said() -> None:
    model = build("bert", "torchscript-eager-17")
    sessions = StageSessions(load_model(model.path), threads=1)
    with pytest.raises(DataError, match="no calibration rows"):
        next(calibrate(sessions, []))
    feeds = model.feeds(2, 5)
    with pytest.raises(DataError, match="sample 0 lacks the input 'token_type_ids'"):
        next(calibrate(sessions, [Sample({k: v for k, v in feeds.items() if k != "token_type_ids"})]))
    with pytest.raises(RecogniseError, match=r"has the tokens \[2, 5\], expected \[2, 4\]"):
        next(calibrate(sessions, [Sample(feeds, np.ones((2, 4), bool))]))


def test_numbers_that_are_not_finite_are_refused_with_the_block() -> None:
    model = build("vit", "torchscript-eager-17")
    feeds = model.feeds(2, 5)
    feeds["pixel_values"][0, 0, 0, 0] = np.inf
    sessions = StageSessions(load_model(model.path), threads=1)
    with pytest.raises(DataError, match=r"layer 0, attention: .* not finite"):
        next(calibrate(sessions, [Sample(feeds)]))
