"""Tokens as transformers makes them, padded and bucketed, within the model's limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from axformer_onnx.data.encoding import Encoded, Encoder, batches
from axformer_onnx.data.rows import Rows, read_rows
from axformer_onnx.data.tokenised import TokenisedOnce
from axformer_onnx.data.tokenizer_files import Padding, length_limit
from axformer_onnx.errors import DataError, RuntimeFailure, UsageError
from axformer_onnx.tasks.definitions import get_task

SHARED = Path(__file__).parents[2] / "shared"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "A", "B"]]
NAMES = ["input_ids", "attention_mask", "token_type_ids"]


def rows_of(texts: Sequence[tuple[str, ...]]) -> Rows:
    return Rows(tuple(texts), np.zeros(len(texts), dtype=np.int64), "test", "")


def save_tokenizer(folder: Path, settings: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Path:
    """A word tokenizer in BERT's manner, with its settings and the model's config."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=20)  # files carry such leftovers; they must not matter
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": 12, "pad_token": "[PAD]"} if settings is None else settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config or {"max_position_embeddings": 16, "pad_token_id": 0}))
    return folder


def test_single_and_paired_rows_get_special_tokens_and_types(tmp_path: Path) -> None:
    encoder = Encoder.from_folder(save_tokenizer(tmp_path))
    one, two = encoder.encode(rows_of([("a b",)])), encoder.encode(rows_of([("a b", "C z")]))
    assert one.ids.tolist() == [2, 4, 5, 3]
    assert two.ids.tolist() == [2, 4, 5, 3, 6, 1, 3]
    assert two.types.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert (len(two), two.lengths.tolist(), two.truncated) == (1, [7], 0)


def test_long_rows_are_cut_at_the_limit_the_longest_text_first_and_counted(tmp_path: Path) -> None:
    encoder = Encoder.from_folder(save_tokenizer(tmp_path))
    encoded = encoder.encode(rows_of([("a " * 30, "b b"), ("a", "b"), ("a " * 6, "b " * 3)]))
    assert encoded.lengths.tolist() == [12, 5, 12]
    assert encoded.truncated == 1
    assert encoded.ids[:12].tolist() == [2, *[4] * 7, 3, 5, 5, 3]


def test_a_shorter_limit_can_be_asked_for_but_no_longer_one(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    assert Encoder.from_folder(folder, max_length=6).encode(rows_of([("a " * 9,)])).lengths.tolist() == [6]
    with pytest.raises(UsageError, match=r"--max-length is 13; .* takes 3 to 12 tokens"):
        Encoder.from_folder(folder, max_length=13)


@pytest.mark.parametrize(
    ("settings", "config", "limit"),
    [
        ({}, {}, 512),
        ({"model_max_length": 1e30}, {}, 512),
        ({"model_max_length": 1e30}, {"max_position_embeddings": 8192, "pad_token_id": 50283}, 8192),
        ({"model_max_length": 128}, {"max_position_embeddings": 512}, 128),
        ({"model_max_length": 512}, {"max_position_embeddings": 128}, 128),
        ({}, {"max_position_embeddings": 514, "pad_token_id": 1, "model_type": "roberta"}, 512),
        ({}, {"max_position_embeddings": 514, "pad_token_id": 1, "model_type": "a later model"}, 512),
        ({}, {"max_position_embeddings": 64, "pad_token_id": 1, "model_type": "roberta"}, 62),
        ({}, {"max_position_embeddings": 512, "pad_token_id": 0, "model_type": "bert"}, 512),
        ({}, {"max_position_embeddings": 512, "pad_token_id": None}, 512),
        ({}, {"n_positions": 1024}, 1024),
    ],
)
def test_the_limit_is_what_tokenizer_and_positions_allow(
    settings: dict[str, Any], config: dict[str, Any], limit: int
) -> None:
    assert length_limit(settings, config) == limit


def test_roberta_takes_exactly_the_limit_and_no_more() -> None:
    """The model itself is the judge of how many tokens its position table holds."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    model = transformers.RobertaModel(config).eval()
    limit = length_limit({}, config.to_dict())
    with torch.no_grad():
        model(torch.full((1, limit), 5))
        with pytest.raises(IndexError):
            model(torch.full((1, limit + 1), 5))


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    max_tokens=st.none() | st.integers(1, 100),
    side=st.sampled_from(["left", "right"]),
)
def test_batches_hold_every_row_once_with_its_tokens_and_little_padding(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    batch_size: int,
    max_tokens: int | None,
    side: str,
) -> None:
    settings = {"model_max_length": 40, "padding_side": side, "pad_token": "[PAD]"}
    folder = save_tokenizer(tmp_path_factory.mktemp("t"), settings, {"pad_token_id": 0})
    encoded = Encoder.from_folder(folder).encode(rows_of([("a " * n,) for n in lengths]))
    made = batches(encoded, [*NAMES, "position_ids"], batch_size=batch_size, max_tokens=max_tokens)
    assert sorted(i for batch in made for i in batch.rows.tolist()) == list(range(len(lengths)))
    widths = [batch.feeds["input_ids"].shape[1] for batch in made]
    assert widths == sorted(widths)
    for batch in made:
        assert all(value.dtype == np.int64 for value in batch.feeds.values())
        assert len(batch.rows) == 1 or max_tokens is None or batch.feeds["input_ids"].size <= max_tokens
        assert len(batch.rows) <= batch_size
        for i, row in enumerate(batch.rows.tolist()):
            real = batch.feeds["attention_mask"][i] == 1
            expected = encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]]
            assert batch.feeds["input_ids"][i][real].tolist() == expected.tolist()
            assert not batch.feeds["input_ids"][i][~real].any()
            assert batch.feeds["position_ids"][i][real].tolist() == list(range(len(expected)))
            assert bool(real[-1 if side == "left" else 0])


def test_only_the_inputs_asked_for_are_fed_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    encoded = Encoder.from_folder(save_tokenizer(tmp_path)).encode(rows_of([("a", "b")]))
    assert list(batches(encoded, ["attention_mask", "input_ids"])[0].feeds) == ["attention_mask", "input_ids"]
    assert batches(encoded, ["segment_ids"])[0].feeds["segment_ids"].tolist() == [[0, 0, 0, 1, 1]]
    with pytest.raises(DataError, match="asks for the input 'pixel_values'"):
        batches(encoded, ["pixel_values"])


def test_without_a_padding_token_a_batch_holds_rows_of_one_length(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, {"model_max_length": 12}, {"model_type": "gpt2"})
    encoder = Encoder.from_folder(folder)
    assert encoder.padding == Padding(None)
    made = batches(encoder.encode(rows_of([("a",), ("a b",), ("b",)])), NAMES)
    assert [batch.rows.tolist() for batch in made] == [[0, 2], [1]]
    assert all(batch.feeds["attention_mask"].all() for batch in made)


def test_the_models_padding_id_wins_over_the_tokenizers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"pad_token": {"content": "[SEP]"}, "pad_token_type_id": 3, "padding_side": "left"}
    assert Encoder.from_folder(save_tokenizer(tmp_path, settings, {"pad_token_id": 5})).padding == Padding(5, 3, "left")
    assert Encoder.from_folder(save_tokenizer(tmp_path, settings | {"cls_token": "[CLS]"}, {"x": 1})).padding.id == 3
    assert Encoder.from_folder(save_tokenizer(tmp_path, settings, {"model_type": "gpt2"})).padding.id is None


def test_the_start_is_cut_where_the_tokenizer_truncates_left(tmp_path: Path) -> None:
    settings = {"model_max_length": 4, "truncation_side": "left"}
    encoder = Encoder.from_folder(save_tokenizer(tmp_path, settings))
    assert encoder.encode(rows_of([("a b c d",)])).ids.tolist() == [2, 6, 7, 3]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Encoder.from_folder(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not a tokenizer that can be read"):
        Encoder.from_folder(tmp_path)


def test_a_slow_tokenizer_without_transformers_is_refused_with_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(RuntimeFailure, match=r"pip install 'axformer-onnx\[export\]'"):
        Encoder.from_folder(tmp_path)


def test_a_slow_tokenizer_is_converted_with_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "pad_token_id": 0}))
    encoded = Encoder.from_folder(tmp_path).encode(rows_of([("A b", "c")]))
    assert encoded.ids.tolist() == [2, 4, 5, 3, 6, 3]


def test_the_case_setting_of_the_tokenizer_config_is_kept(tmp_path: Path) -> None:
    settings = {"do_lower_case": False, "model_max_length": 12, "tokenizer_class": "BertTokenizer"}
    encoder = Encoder.from_folder(save_tokenizer(tmp_path, settings))
    assert encoder.encode(rows_of([("A a",)])).ids.tolist() == [2, WORDS.index("A"), 4, 3]


@pytest.mark.parametrize("max_length", [512, 24])
@pytest.mark.parametrize("name", ["mnli", "sst2"])
def test_tokens_of_real_rows_equal_transformers(name: str, max_length: int) -> None:
    folder, data = SHARED / "checkpoints" / name, SHARED / "data" / name / "validation.jsonl"
    if not folder.is_dir():
        pytest.skip(f"{folder} with a real tokenizer is absent")
    transformers = pytest.importorskip("transformers")
    rows = read_rows(data, get_task(name)).take(range(400))
    encoder = Encoder.from_folder(folder, max_length)
    encoded = encoder.encode(rows)
    oracle = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected = oracle(*map(list, zip(*rows.texts, strict=True)), truncation=True, max_length=max_length)
    assert [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)] == expected[
        "input_ids"
    ]
    made = batches(encoded, NAMES)
    assert len(made) == 13
    for batch in made:
        chosen = [rows.texts[i] for i in batch.rows.tolist()]
        padded = oracle(
            *map(list, zip(*chosen, strict=True)),
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="np",
        )
        for key in NAMES:
            np.testing.assert_array_equal(batch.feeds[key], padded[key])


def same_tokens(one: Encoded, two: Encoded) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("ids", "types", "offsets"))


PAIRS = [("a b", "C"), ("a " * 9, "b"), ("b", "a C a"), ("a b", "C"), ("C", "C b " * 7)]


def test_rows_taken_of_tokens_are_the_tokens_of_rows_taken(tmp_path: Path) -> None:
    encoder, rows = Encoder.from_folder(save_tokenizer(tmp_path), max_length=8), rows_of(PAIRS)
    whole = encoder.encode(rows)
    for some in ([3, 0, 4, 1], [2], [], [1, 1, 0]):
        assert same_tokens(whole.take(some), encoder.encode(rows.take(some)) if some else whole.take([]))
        assert len(whole.take(some)) == len(some)


def test_each_row_is_tokenised_once_and_gives_the_tokens_that_it_gives_alone(tmp_path: Path) -> None:
    encoder, rows = Encoder.from_folder(save_tokenizer(tmp_path), max_length=8), rows_of(PAIRS)
    seen = list[tuple[str, ...]]()

    class Counting(Encoder):
        def encode(self, rows: Rows) -> Encoded:
            seen.extend(rows.texts)
            return super().encode(rows)

    counting = Counting(encoder.tokenizer, encoder.max_length, encoder.padding, encoder.truncation_side)
    known = rows.take([1, 0])
    once = TokenisedOnce(counting.encode, (known, encoder.encode(known)))
    for some in ([0, 1], [4, 0, 2, 3], [2, 2, 4], [0, 1, 2, 3, 4]):
        assert same_tokens(once.encode(rows.take(some)), encoder.encode(rows.take(some)))
    assert sorted(seen) == sorted({PAIRS[2], PAIRS[4]})
    assert len(once.encode(rows.take([]))) == 0
