"""Make a trained BERT deeper and wider without changing what it answers (much), so that it has more than it needs.

Fine-tuned models are over-parameterised for their one task; a model of this size that is trained from scratch is not. So it learns
while it is small, and then grows, in the manner of Net2Net (Chen et al., arXiv 1511.05641):

    neuron   up drawn as at the start, down 0: adds nothing
    layer    attention and feed-forward outputs 0. What is left of a post-norm layer is norm2(norm1(x)); with norm2's scale and
             shift set to x's usual deviation and mean over its channels, that is x up to the spread of the two between tokens

and a few more epochs put the new parts to what use there is.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from nli_training import Example, Recipe, batches, learn_labels


def grow(model: Any, recipe: Recipe, examples: list[Example], watched: list[Example]) -> Any:
    """A copy of `model` with `recipe.grown_layers` layers of `recipe.grown_neurons` neurons, trained on."""
    import torch

    torch.manual_seed(recipe.seed)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.intermediate_size = recipe.grown_layers, recipe.grown_neurons
    larger = type(model)(config)
    with torch.no_grad():
        larger.bert.embeddings.load_state_dict(model.bert.embeddings.state_dict())
        larger.bert.pooler.load_state_dict(model.bert.pooler.state_dict())
        larger.classifier.load_state_dict(model.classifier.state_dict())
        for new, old in _places(recipe):
            source = model.bert.encoder.layer[old]
            target = larger.bert.encoder.layer[new]
            if new in _kept(recipe):
                _widen(target, source)
            else:
                _pass_through(target, *_spread(model, examples, old))
    more = dataclasses.replace(recipe, epochs=recipe.growing_epochs, learning_rate=recipe.growing_rate)
    learn_labels(larger, more, examples, watched)
    return larger


def _kept(recipe: Recipe) -> dict[int, int]:
    """{place in the larger model: place in the smaller one} of the layers that were there; the new ones lie evenly between."""
    return {(i + 1) * recipe.grown_layers // recipe.layers - 1: i for i in range(recipe.layers)}


def _places(recipe: Recipe) -> list[tuple[int, int]]:
    """(layer of the larger model, layer of the smaller one that it is, or whose output it passes on)."""
    kept, below, places = _kept(recipe), 0, []
    for new in range(recipe.grown_layers):
        below = kept.get(new, below)
        places.append((new, below))
    return places


def _widen(target: Any, source: Any) -> None:
    """Copy a layer into one with more neurons."""
    old = source.intermediate.dense.out_features
    target.attention.load_state_dict(source.attention.state_dict())
    target.output.LayerNorm.load_state_dict(source.output.LayerNorm.state_dict())
    target.intermediate.dense.weight[:old] = source.intermediate.dense.weight
    target.intermediate.dense.bias[:old] = source.intermediate.dense.bias
    target.output.dense.weight.zero_()
    target.output.dense.weight[:, :old] = source.output.dense.weight
    target.output.dense.bias.copy_(source.output.dense.bias)


def _pass_through(target: Any, deviation: float, mean: float) -> None:
    """Make a fresh layer hand on what it gets."""
    for dense in (target.attention.output.dense, target.output.dense):
        dense.weight.zero_()
        dense.bias.zero_()
    target.output.LayerNorm.weight.fill_(deviation)
    target.output.LayerNorm.bias.fill_(mean)


def _spread(model: Any, examples: list[Example], layer: int) -> tuple[float, float]:
    """(deviation, mean) over the channels of a token's state behind `layer`, averaged over the tokens of 250 rows."""
    inputs, _ = next(batches(examples[:250], 250, None))
    state = model.bert(**inputs, output_hidden_states=True).hidden_states[layer + 1]
    real = state[inputs["attention_mask"].bool()]
    return float(real.std(dim=-1, correction=0).mean()), float(real.mean())
