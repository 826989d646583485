"""Narrow the read-out: what only a picked token needs is computed for that token alone (docs/method.md 3). Exact.

    before  x[B,S,D] -> attention(queries, keys, values of x) -> + x -> norm -> feed-forward -> .. -> Gather(0) -> classifier
    after   x[B,S,D] -> Gather([0]) -> queries, + x, norm, feed-forward, .. of [B,1,D] -> Gather(0) -> classifier
                     -> keys, values of all tokens

The pick moves up through every operator that works token by token (`operators`), as an axis of size 1, as far as all users of a
tensor go along. Sizes that the graph reads off a narrowed tensor stay those of the whole one.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.graph import anchor
from axformer_passes.operators import Probes, probes_of, record_of
from axformer_passes.probe import Runner, Step, probed
from axformer_passes.readout.edit import narrow_tokens
from axformer_passes.readout.picks import picks
from axformer_passes.readout.unpack import unpack
from axformer_passes.readout.walk import narrowing


@dataclasses.dataclass(frozen=True)
class NarrowedReadout:
    """What was narrowed.

    nodes    first outputs of the nodes that work on the picked tokens alone now, in graph order
    tokens   which: positions, or the names of tensors that hold one for each row of the batch
    places   the tensors of which tokens are picked now
    why      where nothing was narrowed: the reason; else empty
    """

    nodes: tuple[str, ...] = ()
    tokens: tuple[int | str, ...] = ()
    places: tuple[str, ...] = ()
    why: str = ""


def narrow_readout(model: ir.Model, runner: Runner) -> NarrowedReadout:
    """Edit a prepared `model` in place, so that single tokens that its outputs read are computed alone where that is exact.

    Nothing is edited where no product would become smaller. Raises: ModelError where the model does not run on a small probe.
    """
    probes = _probes(model, runner)
    if probes is None:
        return NarrowedReadout(
            why="the graph runs at one size alone, so that its tokens cannot be told from other axes"
        )
    starts, why = picks(probes)
    if why:
        return NarrowedReadout(why=why)
    found = narrowing(probes, starts)
    if unpack(model, runner, found):
        common.RemoveUnusedNodesPass()(model)
        probes = _probes(model, runner)
        assert probes is not None
        starts, _ = picks(probes)
        found = narrowing(probes, starts)
    ends = {pick.node for pick in starts}
    nodes = [node for node in found.needs if node not in ends]
    if not any(record_of(node).bears for node in nodes):
        return NarrowedReadout(why="nothing would be saved: " + "; ".join(found.stops[:3]))
    tokens = {t for pick in starts for t in _tokens(pick.rows.tokens) if pick.node in found.needs}
    return NarrowedReadout(
        tuple(map(anchor, nodes)), tuple(sorted(tokens, key=str)), narrow_tokens(probes, found, ends)
    )


def _tokens(tokens: tuple[int, ...] | str) -> tuple[int | str, ...]:
    return (tokens,) if isinstance(tokens, str) else tokens


_STEPS = (Step(0, 0, 0), Step(1, 1, 0))


def _probes(model: ir.Model, runner: Runner) -> Probes | None:
    """Two probes, of another batch size and length; None where the graph does not run on the second.

    Raises: ModelError where it does not run on the first.
    """
    found = probes_of(model, runner, _STEPS)
    if found is None:
        probed(model, runner)
    return found
