"""Runs graphs with the onnxruntime in a folder, in a process of its own: older_session.py FOLDER FEEDS.npz ANSWERS.npz GRAPH...

It imports nothing but numpy and onnxruntime, both from FOLDER where they lie there. ANSWERS has the array "i:j:name" for output
`name` of graph i on the j-th feeds; FEEDS has "j:name". The version is printed; a graph that is refused prints "refused: i: why".
"""

from __future__ import annotations

import sys
from collections import defaultdict


def main(folder: str, given: str, answers: str, graphs: list[str]) -> None:
    """See the module."""
    sys.path.insert(0, folder)
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    feeds: dict[str, dict[str, object]] = defaultdict(dict)
    for key, array in np.load(given).items():
        trial, _, name = key.partition(":")
        feeds[trial][name] = array
    print(ort.__version__)
    found = {}
    for i, graph in enumerate(graphs):
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            names = {one.name for one in session.get_inputs()}
            for trial, arrays in feeds.items():
                outputs = session.run(None, {name: array for name, array in arrays.items() if name in names})
                for one, output in zip(session.get_outputs(), outputs):  # noqa: B905  it may run in Python 3.9
                    found[f"{i}:{trial}:{one.name}"] = output
        except Exception as error:
            print(f"refused: {i}: {' '.join(str(error).split())[:300]}")
    np.savez(answers, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
