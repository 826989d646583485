"""models/nli-mini and the grammar that its rows come from.

The labels are checked twice, both times without the integer programmes that computed them: the committed
sentences are parsed again here and judged by going through small worlds one by one, and the grammar's
logical forms are tried in random worlds.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODELS = Path(__file__).parents[1] / "models"
FOLDER = MODELS / "nli-mini"
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
NUMBERS = {word: number for number, word in enumerate(WORDS)}
World = tuple[int, ...]
Holds = Callable[[World], bool]


def rows_of(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def grammar() -> Iterator[Any]:
    sys.path.insert(0, str(MODELS))
    try:
        yield importlib.import_module("nli_grammar.quantified")
    finally:
        sys.path.remove(str(MODELS))


def judged(premise: Holds, hypothesis: Holds, worlds: Sequence[World]) -> int:
    """0 entailment, 1 neutral, 2 contradiction, by going through all worlds."""
    verdicts = {hypothesis(world) for world in worlds if premise(world)}
    return 1 if len(verdicts) == 2 else 0 if verdicts == {True} else 2


# -- the committed files -----------------------------------------------------------------------------------


def test_folder_holds_a_whole_model_under_eight_megabytes() -> None:
    names = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert names == {
        "model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "README.md",
        "data/search.jsonl", "data/validation.jsonl",
    }  # fmt: skip
    assert sum((FOLDER / name).stat().st_size for name in names) < 8_000_000


@pytest.mark.parametrize("name", ["search", "validation"])
def test_rows_have_the_columns_and_balanced_labels_of_mnli(name: str) -> None:
    rows = rows_of(name)
    assert len(rows) >= 1_000
    assert all(set(row) == {"premise", "hypothesis", "label", "idx"} for row in rows)
    assert all(row["premise"] and row["hypothesis"] and row["premise"] != row["hypothesis"] for row in rows)
    shares = np.bincount([row["label"] for row in rows], minlength=3) / len(rows)
    assert shares.shape == (3,)
    assert shares.min() > 0.28


def test_no_row_is_in_two_sets_or_twice_in_one() -> None:
    rows = rows_of("search") + rows_of("validation")
    pairs = {(row["premise"].lower(), row["hypothesis"].lower()) for row in rows}
    assert len(pairs) == len(rows)


def test_config_names_the_labels_in_the_order_of_the_rows() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert 4 <= config["num_hidden_layers"] <= 6


def test_model_is_float32_and_dynamic_in_batch_and_sequence() -> None:
    import onnx

    model = onnx.load(FOLDER / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    inputs = {value.name: [d.dim_param for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    assert inputs == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert [value.name for value in model.graph.output] == ["logits"]
    floats = {t.data_type for t in model.graph.initializer} - {onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT}


def test_model_is_neither_trivial_nor_saturated_on_the_clean_validation_rows() -> None:
    assert 80 <= accuracy("validation") <= 95


def test_card_states_the_measured_accuracy_of_both_sets() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ("search", "validation"):
        stated = re.search(rf"\| {name} \|[^\n]* ([\d.]+) \|", card)
        assert stated
        # a row or two may flip between torch and ONNX Runtime, or between processors
        assert float(stated[1]) == pytest.approx(accuracy(name), abs=0.15)


@functools.cache
def accuracy(name: str) -> float:
    """Share of correct rows, in points."""
    rows = rows_of(name)
    return 100 * float(np.mean(predictions(rows) == [row["label"] for row in rows]))


def predictions(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """int64[rows]: the class with the largest logit, through tokenizers and ONNX Runtime alone."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(64)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"])
    answers = []
    for start in range(0, len(rows), 250):
        batch = [(row["premise"], row["hypothesis"]) for row in rows[start : start + 250]]
        encoded = tokenizer.encode_batch(batch)
        feed = {
            "input_ids": np.array([e.ids for e in encoded]),
            "attention_mask": np.array([e.attention_mask for e in encoded]),
            "token_type_ids": np.array([e.type_ids for e in encoded]),
        }
        answers.append(session.run(["logits"], feed)[0].argmax(axis=1))
    return np.concatenate(answers)


# -- labels, parsed again from the sentences ---------------------------------------------------------------


def plain(text: str) -> str:
    return text.lower().removesuffix(".")


QUANTIFIED: list[tuple[str, Callable[[int, int, int], bool]]] = [
    (r"(?:all|each of the) (\w.*)", lambda i, o, k: o == 0 and i > 0),
    (r"(?:no|none of the) (?!fewer|more)(\w.*)", lambda i, o, k: i == 0 and o > 0),
    (r"not all (\w.*)", lambda i, o, k: o > 0),
    (r"some (\w.*)", lambda i, o, k: i > 0),
    (r"(?:most|more than half of the|the majority of the) (\w.*)", lambda i, o, k: i > o),
    (r"(?:fewer than half of the|only a minority of the) (\w.*)", lambda i, o, k: i < o),
    (r"exactly half of the (\w.*)", lambda i, o, k: i == o and i > 0),
    (r"(?:at least|no fewer than) (NUMBER) (\w.*)", lambda i, o, k: i >= k),
    (r"(NUMBER) or more (\w.*)", lambda i, o, k: i >= k),
    (r"(?:more than|over) (NUMBER) (\w.*)", lambda i, o, k: i > k),
    (r"(?:at most|no more than) (NUMBER) (\w.*)", lambda i, o, k: i <= k),
    (r"(?:fewer|less) than (NUMBER) (\w.*)", lambda i, o, k: i < k),
    (r"(?:exactly|precisely) (NUMBER) (\w.*)", lambda i, o, k: i == k),
]  # fmt: skip
NUMBER = rf"(?:\d+|{'|'.join(NUMBERS)})"
FRAME = r"^(?:yesterday|last night|on sunday|at the moment|right now), "


def quantity(text: str) -> tuple[str, Holds] | None:
    """(what is counted, what is said of (inside, outside)) of a plural, positive sentence; else None."""
    text = re.sub(FRAME, "", plain(text))
    if " not " in text.removeprefix("not ") or not re.search(r" (?:are|were) ", text):
        return None
    for pattern, test in QUANTIFIED:
        if match := re.fullmatch(pattern.replace("(NUMBER)", f"({NUMBER})"), text):
            *number, rest = match.groups()
            count = (NUMBERS.get(number[0]) or int(number[0])) if number else 0
            return rest, lambda w, t=test, k=count: t(w[0], w[1], k)
    return None


def test_labels_of_quantities_of_one_kind_hold_in_all_small_numbers() -> None:
    # The quantifiers that presuppose somebody do so in the hypothesis too: only non-empty worlds count.
    checked = 0
    for row in rows_of("search") + rows_of("validation"):
        premise, claim = quantity(row["premise"]), quantity(row["hypothesis"])
        if premise is None or claim is None or premise[0] != claim[0]:
            continue
        counting = re.search(rf"\b{NUMBER}\b|^some", re.sub(FRAME, "", plain(row["hypothesis"])))
        least = 0 if counting else 1
        worlds = [(i, o) for i, o in itertools.product(range(25), repeat=2) if i + o >= least]
        checked += 1
        assert judged(premise[1], claim[1], worlds) == row["label"], row
    assert checked > 60


def deed(text: str, people: list[str]) -> tuple[str, Holds] | None:
    """(verb, what a one-clause sentence says of the table of who did it to whom); else None."""
    text = plain(text)
    match = re.fullmatch(r"(.+?) (was )?(?:(not|never|did not) )?(\w+)( by)? ((?:the )?\w+)", text)
    if not match or bool(match[2]) != bool(match[5]) or " " in match[1].removeprefix("the "):
        return None
    verb = re.sub(r"(?<=bb)ed$|ed$|d$", "", match[4].replace("carried", "carry")).rstrip("e")
    verb = re.sub(r"(.)\1$", r"\1", verb)
    agent, patient = (match[6], match[1]) if match[2] else (match[1], match[6])

    def places(name: str) -> list[int]:
        if name in ("somebody", "nobody"):
            return [0, 1, 2, 3]
        if name not in people:
            people.append(name)
        return [people.index(name)]

    agents, patients = places(agent), places(patient)
    denied = bool(match[3]) or "nobody" in (agent, patient)
    cells = [4 * a + p for a in agents for p in patients if a != p]
    return verb, lambda world, c=cells, d=denied: any(world[i] for i in c) != d


def test_labels_of_deeds_hold_in_all_tables_of_who_did_it_to_whom() -> None:
    checked = 0
    for row in rows_of("search") + rows_of("validation"):
        people: list[str] = []
        premise, claim = deed(row["premise"], people), deed(row["hypothesis"], people)
        if premise is None or claim is None or premise[0] != claim[0] or len(people) > 3:
            continue
        checked += 1
        worlds = deed_worlds()
        assert judged(premise[1], claim[1], worlds) == row["label"], row
    assert checked > 60


def deed_worlds() -> list[World]:
    """Tables with at most two deeds and with at most two missing: enough to tell single clauses apart."""
    off_diagonal = [4 * a + p for a in range(4) for p in range(4) if a != p]
    chosen = [set(c) for n in range(3) for c in itertools.combinations(off_diagonal, n)]
    chosen += [set(off_diagonal) - c for c in chosen]
    return [tuple(int(i in c) for i in range(16)) for c in chosen]


# -- the grammar's own calculus ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("premise", "hypothesis", "nouns", "predicates", "expected"),
    [
        (("all", 0), ("some", 0), "same", "same", 0),  # presupposed: there are some
        (("some", 0), ("all", 0), "same", "same", 1),
        (("all", 0), ("not all", 0), "same", "same", 2),
        (("all", 0), ("all", 0), "below", "above", 0),  # all animals run -> all dogs move
        (("all", 0), ("all", 0), "above", "same", 1),  # all dogs run -/-> all animals run
        (("some", 0), ("some", 0), "above", "above", 0),  # some dogs run -> some animals move
        (("no", 0), ("no", 0), "below", "below", 0),  # no animals move -> no dogs run
        (("no", 0), ("some", 0), "above", "same", 1),  # no dogs run, some animals run
        (("all", 0), ("some", 0), "same", "disjoint", 2),  # all run, some sleep
        (("most", 0), ("most", 0), "above", "same", 1),  # most is not monotone in its noun
        (("most", 0), ("most", 0), "same", "disjoint", 2),
        (("half", 0), ("most", 0), "same", "same", 2),
        (("exactly", 3), ("more than", 2), "same", "same", 0),
        (("at least", 3), ("fewer than", 3), "same", "same", 2),
        (("at most", 3), ("at least", 2), "same", "same", 1),
        (("more than", 3), ("at least", 4), "above", "above", 0),
        (("at least", 3), ("some", 0), "disjoint", "same", 1),
    ],
)
def test_calculus_agrees_with_a_table_written_by_hand(
    grammar: Any,
    premise: tuple[str, int],
    hypothesis: tuple[str, int],
    nouns: str,
    predicates: str,
    expected: int,
) -> None:
    first = grammar.Clause(*premise, False, False, "A", "V")
    second = grammar.Clause(*hypothesis, False, False, "B", "W")
    assert grammar.label(first, second, nouns, predicates) == expected


@pytest.mark.parametrize("seed", range(5))
def test_calculus_is_never_refuted_by_a_random_world(grammar: Any, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        first, second = (random_clause(rng, grammar, *letters) for letters in ("AV", "BW"))
        relations = [rng.choice(["same", "above", "below", "disjoint", "independent"]) for _ in range(2)]
        verdict = grammar.label(first, second, *relations)
        seen = set()
        for _ in range(200):
            world = {cell: rng.choice((0, 0, 0, 1, 2, 3)) for cell in grammar.cells(*relations)}
            (says, wants), (claims, also) = (meaning_in(grammar, c, world) for c in (first, second))
            if says and wants and also:
                seen.add(claims)
        assert not (verdict == 0 and False in seen), (first, second, relations)
        assert not (verdict == 2 and True in seen), (first, second, relations)
        assert not (len(seen) == 2 and verdict != 1), (first, second, relations)


def random_clause(rng: random.Random, grammar: Any, noun: str, predicate: str) -> Any:
    name = rng.choice(list(grammar.QUANTIFIERS))
    quantifier = grammar.QUANTIFIERS[name]
    number = rng.randint(2, 4) if quantifier.counts else 0
    return grammar.Clause(
        name, number, rng.random() < 0.4, quantifier.negatable and rng.random() < 0.4, noun, predicate
    )


def meaning_in(grammar: Any, clause: Any, world: dict[str, int]) -> tuple[bool, bool]:
    """(is the clause true, is its presupposition true), by counting in one world."""
    named = {c: n for c, n in world.items() if clause.noun in c and (not clause.modified or "M" in c)}
    inside = sum(n for c, n in named.items() if (clause.predicate in c) != clause.negated)
    outside = sum(named.values()) - inside
    k = clause.number
    truth = {
        "all": outside == 0, "no": inside == 0, "not all": outside > 0, "some": inside > 0,
        "most": inside > outside,
        "minority": inside < outside, "half": inside == outside, "at least": inside >= k,
        "more than": inside > k,
        "at most": inside <= k, "fewer than": inside < k, "exactly": inside == k,
    }[clause.quantifier]  # fmt: skip
    presupposes = clause.quantifier in {"all", "no", "not all", "most", "minority", "half"}
    return truth, not presupposes or inside + outside > 0


def test_same_seed_gives_the_same_rows_and_noise_changes_only_labels(grammar: Any) -> None:
    rows = importlib.import_module("nli_grammar.rows")
    first, second = (rows.take(rows.generate(3, set()), 60) for _ in range(2))
    assert first == second
    noisy = rows.with_noise(first, 0.1, seed=1)
    changed = [i for i, (a, b) in enumerate(zip(first, noisy, strict=True)) if a["label"] != b["label"]]
    assert len(changed) == 6
    assert [r["premise"] for r in noisy] == [r["premise"] for r in first]


def test_committed_validation_rows_are_the_ones_the_script_makes(grammar: Any) -> None:
    builder = importlib.import_module("build_nli_mini")
    rows = importlib.import_module("nli_grammar.rows")
    made = rows.take(rows.generate(builder.Recipe.seed, set()), 100)
    assert made == rows_of("validation")[:100]
