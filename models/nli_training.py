"""Train a small BERT from scratch on pairs of sentences: first to fill in masked words, then to tell the label.

The first phase is what makes the second one work: filling a masked word of one sentence from the other teaches attention
to find the same word again, which labels alone teach very slowly. Forward passes run in bfloat16, weights stay float32.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

Example = tuple[Any, int]  # a tokenizers.Encoding and its label
MASK = 4  # id of [MASK]; special tokens are 0..4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    seed: int = 7
    train_rows: int = 40_000
    search_rows: int = 1_500
    validation_rows: int = 1_500
    noise: float = 0.10
    hidden: int = 128
    heads: int = 8
    layers: int = 4
    neurons: int = 512
    initial: float = 0.06
    batch: int = 16
    masking_epochs: int = 1
    masking_rate: float = 5e-4
    masked_share: float = 0.2
    epochs: int = 14
    learning_rate: float = 3e-4
    grown_layers: int = 6
    grown_neurons: int = 640
    growing_epochs: int = 3
    growing_rate: float = 1e-4
    weight_decay: float = 0.01


def batches(examples: list[Example], size: int, rng: random.Random | None) -> Iterator[tuple[dict[str, Any], Any]]:
    """(inputs int64[B,S], labels int64[B]) of rows of similar length; shuffled where a generator is given."""
    import torch

    order = list(range(len(examples)))
    if rng:
        rng.shuffle(order)
        window = size * 50
        chunks = [order[i : i + window] for i in range(0, len(order), window)]
        order = [i for chunk in chunks for i in sorted(chunk, key=lambda i: len(examples[i][0].ids))]
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    for group in groups:
        labels = torch.tensor([examples[i][1] for i in group])
        yield padded([examples[i][0] for i in group]), labels


def padded(encodings: list[Any]) -> dict[str, Any]:
    """The three inputs of BERT, int64[B,S], padded to the longest row."""
    import torch

    inputs = np.zeros((3, len(encodings), max(len(e.ids) for e in encodings)), np.int64)
    for row, encoding in enumerate(encodings):
        inputs[:, row, : len(encoding.ids)] = encoding.ids, encoding.attention_mask, encoding.type_ids
    return dict(zip(("input_ids", "attention_mask", "token_type_ids"), torch.from_numpy(inputs), strict=True))


def accuracy(model: Any, examples: list[Example]) -> float:
    """Share of correct rows, in points."""
    import torch

    model.eval()
    with torch.no_grad():
        hits = sum(int((model(**x).logits.argmax(-1) == y).sum()) for x, y in batches(examples, 250, None))
    return 100 * hits / len(examples)


class Descent:
    """AdamW with gradient clipping, linear warm-up over a twentieth of the steps and linear decay to zero."""

    def __init__(self, parameters: list[Any], rate: float, decay: float, steps: int) -> None:
        import torch

        warm = max(1.0, steps / 20)
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / (steps - warm)))
        )

    def step(self, loss: Any) -> float:
        """One update; returns the loss."""
        import torch

        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.item())


def learn_words(model: Any, recipe: Recipe, examples: list[Example]) -> None:
    """Masked words, through a projection that is thrown away and the word embeddings."""
    import torch

    torch.manual_seed(recipe.seed)
    projection = torch.nn.Linear(recipe.hidden, recipe.hidden)
    steps = recipe.masking_epochs * -(-len(examples) // recipe.batch)
    parameters = [*model.parameters(), *projection.parameters()]
    descent = Descent(parameters, recipe.masking_rate, recipe.weight_decay, steps)
    rng, generator = random.Random(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.masking_epochs):
        model.train()
        losses = []
        for inputs, _ in batches(examples, recipe.batch, rng):
            ids = inputs["input_ids"]
            masked = (torch.rand(ids.shape, generator=generator) < recipe.masked_share) & (ids > MASK)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model.bert(**{**inputs, "input_ids": ids.masked_fill(masked, MASK)}).last_hidden_state
                words = model.bert.embeddings.word_embeddings.weight
                logits = torch.nn.functional.gelu(projection(hidden[masked])) @ words.T
            losses.append(descent.step(torch.nn.functional.cross_entropy(logits.float(), ids[masked])))
        print(f"masked words, epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)


def learn_labels(model: Any, recipe: Recipe, examples: list[Example], watched: list[Example]) -> None:
    """Cross-entropy on the labels; prints the accuracy on `watched` after each epoch."""
    import torch

    steps = recipe.epochs * -(-len(examples) // recipe.batch)
    descent = Descent(list(model.parameters()), recipe.learning_rate, recipe.weight_decay, steps)
    rng, start = random.Random(recipe.seed), time.time()
    for epoch in range(recipe.epochs):
        model.train()
        losses = []
        for inputs, labels in batches(examples, recipe.batch, rng):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(**inputs).logits
            losses.append(descent.step(torch.nn.functional.cross_entropy(logits.float(), labels)))
        score, seconds = accuracy(model, watched), time.time() - start
        print(
            f"labels, epoch {epoch + 1}: loss {np.mean(losses):.4f}, search rows {score:.1f}, {seconds:.0f} s",
            flush=True,
        )
