"""A union-find over channel labels: which positions of which tensors must be removed together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Classes:
    """A union-find over labels 0, 1, 2, ...; the label -1 means "none" and is never united.

    A class is a tree of parents below its smallest label; whole arrays are looked up and united at once.
    """

    def __init__(self) -> None:
        self._parent: IntArray = np.arange(64)
        self._count = 0

    def new(self, count: int) -> IntArray:
        """`count` labels, each a class of its own."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            more = np.arange(len(self._parent), 2 * self._count)
            self._parent = np.concatenate([self._parent, more])
        return np.arange(start, self._count)

    def find(self, labels: IntArray) -> IntArray:
        """The representative of each label's class: its smallest label."""
        found = self._parent[labels]
        while ((above := self._parent[found]) != found).any():
            found = above
        self._parent[labels] = found
        return found

    def unite(self, a: IntArray, b: IntArray) -> None:
        """Unite a[i] with b[i] for every i of two arrays of one shape."""
        a, b = distinct(a, b)
        both = (a >= 0) & (b >= 0) & (a != b)
        if not both.any():
            return
        a, b = self.find(a[both]), self.find(b[both])
        while (apart := a != b).any():
            a, b = a[apart], b[apart]
            np.minimum.at(
                self._parent, np.maximum(a, b), np.minimum(a, b)
            )  # of several at one label the smallest stays
            a, b = self.find(a), self.find(b)

    def roots(self) -> IntArray:
        """int64[labels]: the representative of every label."""
        return self.find(np.arange(self._count))


def labels_in(labels: IntArray) -> IntArray:
    """int64[n]: the labels that occur, ascending."""
    few = distinct(labels)[0]
    return np.unique(few[few >= 0])


def distinct(*arrays: IntArray) -> tuple[IntArray, ...]:
    """Arrays of one shape without the axes that all of them merely repeat (views of a broadcast): the same entries meet, once."""
    repeated = [all(x.strides[axis] == 0 for x in arrays) for axis in range(arrays[0].ndim)]
    if not any(repeated) or 0 in arrays[0].shape:
        return arrays
    once = tuple(slice(1) if r else slice(None) for r in repeated)
    return tuple(x[once] for x in arrays)
