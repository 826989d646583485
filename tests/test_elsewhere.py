"""Nothing outside the recognised blocks is ever edited: what a plan changes lies in the blocks that it names."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import pytest
from zoo import build

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.anatomy import AttentionBlock, Block
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

FILES = [
    *(("bert", f"torchscript-eager-17{variant}") for variant in ("", "+int8", "+qdq", "+onnxslim")),
    ("bert", "dynamo-20"), ("roberta", "torchscript-sdpa-14"), ("mpnet", "torchscript-eager-17"), ("llama", "dynamo-20"),
    ("deberta-v2", "torchscript-eager-17"), ("modernbert", "dynamo-20"), ("gpt2", "torchscript-sdpa-17"), ("vit", "dynamo-20"),
    ("t5", "torchscript-eager-17"), ("mobilebert", "dynamo-20"), ("wav2vec2", "torchscript-eager-17"),
]  # fmt: skip
PLANS = {
    "heads": Plan().without_heads(1, [0]),
    "neurons": Plan().without_neurons(1, [0, 3]),
    "hard": Plan().with_hard_attention(1, 3).without_heads(1, [1]),
}
ALWAYS = Plan().without_heads(0, [0])
"""Part of both plans that are compared, so that both go through all passes."""


class Graph:
    """What the nodes of a graph are, by their first output; weights by content, for a cut may give them other names."""

    def __init__(self, content: bytes) -> None:
        graph = onnx.load_from_string(content).graph
        self.nodes = {node.output[0]: node for node in graph.node}
        self.maker = {name: node.output[0] for node in graph.node for name in node.output}
        self.weights = {t.name: (t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializer}
        self.users: dict[str, set[str]] = {name: set() for name in self.nodes}
        for name, node in self.nodes.items():
            for made in filter(None, map(self.maker.get, node.input)):
                self.users[made].add(name)

    def says(self, name: str) -> object:
        """All that a node computes, as far as it is not said by the nodes before it."""
        node = self.nodes[name]
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        return node.domain, node.op_type, attributes, [self.weights.get(i, i) for i in node.input], list(node.output)

    def reached(self, names: Iterable[str], back: bool = False) -> set[str]:
        """These nodes and all behind them (`back`: before them)."""
        found, left = set[str](), [*names]
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                made = (self.maker.get(i) for i in self.nodes[name].input)
                left += filter(None, made) if back else self.users[name]
        return found

    def region(self, block: Block) -> set[str]:
        """The nodes between the first projections of a block and its last, and those that serve nothing else."""
        into = (block.query, block.key, block.value) if isinstance(block, AttentionBlock) else block.up
        last = block.output if isinstance(block, AttentionBlock) else block.down
        starts = (self.maker[linear.output] for linear in into)
        found = self.reached(starts) & self.reached([self.maker[last.output]], back=True)
        for name in reversed(self.nodes):  # every reader comes behind what it reads
            if self.users[name] and self.users[name] <= found:
                found.add(name)
        return found


def different(graph: Graph, cut: Graph) -> set[str]:
    """Nodes that differ or are gone."""
    return {name for name in graph.nodes if name not in cut.nodes or graph.says(name) != cut.says(name)}


@pytest.mark.matrix
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_what_a_plan_changes_lies_in_the_blocks_that_it_names(family: str, exporter: str, plan: str) -> None:
    model = load_model(build(family, exporter).path)
    anatomy = recognise(model, run_once)
    wanted = PLANS[plan]
    layer = next(i for i, x in enumerate(anatomy.layers) if i and (x.feed_forward if wanted.neurons else x.attention))
    block = anatomy.layers[layer].feed_forward if wanted.neurons else anatomy.layers[layer].attention
    assert block is not None
    both = _at(layer, wanted)
    before = Graph(serialized(apply_plan(model, ALWAYS, run_once)))
    cut = Graph(serialized(apply_plan(model, both, run_once)))
    region = before.region(block)
    assert len(region) < len(before.nodes) / 2
    changed = different(before, cut)
    assert changed and changed <= region, sorted(changed - region)[:5]
    new = cut.nodes.keys() - before.nodes.keys()
    assert all(cut.users[name] <= new | region for name in new), sorted(new)[:5]


def _at(layer: int, plan: Plan) -> Plan:
    """ALWAYS, and `plan` of layer 1 in another layer."""
    found = ALWAYS
    for ids in plan.heads.values():
        found = found.without_heads(layer, ids)
    for ids in plan.neurons.values():
        found = found.without_neurons(layer, ids)
    for rule in plan.hard_attention.values():
        found = found.with_hard_attention(layer, rule.k, rule.mode)
    return found
