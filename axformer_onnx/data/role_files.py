"""Files of a data folder that are named after roles: train, search, validation or dev, test, calibration."""

from __future__ import annotations

import re
from pathlib import Path

from axformer_onnx.data.formats import EXTENSIONS
from axformer_onnx.errors import DataError

# Names of each role, the preferred first.
_NAMES = {
    "train": ("train",),
    "search": ("search",),
    "validation": ("validation", "dev", "validation_matched", "dev_matched", "valid"),
    "test": ("test", "test_matched"),
    "calibration": ("calibration",),
}
_MISMATCHED = {"validation": ("validation_mismatched", "dev_mismatched"), "test": ("test_mismatched",)}
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")  # the hub's Parquet files: train-00000-of-00002.parquet
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


def find_roles(folder: Path, *, mismatched: bool = False) -> dict[str, list[Path]]:
    """Files by role. `mismatched` looks for MNLI's mismatched validation and test rows. A text file beside another format of the
    same name is left out: it may be anything.

    Raises: DataError where no file has a role's name, or one name has two formats.
    """
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            shard = _SHARD.fullmatch(path.stem)
            stems.setdefault((shard[1] if shard else path.stem).lower(), []).append(path)
    names = _NAMES | (_MISMATCHED if mismatched else {})
    roles: dict[str, list[Path]] = {}
    for role, candidates in names.items():
        name = next((name for name in candidates if name in stems), None)
        if name is not None:
            roles[role] = _one_format(stems[name])
    if not roles:
        raise DataError(
            f"{folder}: no file is named after a role; expected for example validation.jsonl, train.csv or "
            f"search.tsv ({', '.join(EXTENSIONS)})"
        )
    return roles


def looks_like_hub_name(text: str) -> bool:
    """'owner/name' or 'name', and nothing that only a path would have."""
    return bool(_HUB_NAME.fullmatch(text)) and not text.startswith(".") and not text.lower().endswith(EXTENSIONS)


def _one_format(paths: list[Path]) -> list[Path]:
    paths = [path for path in paths if path.suffix.lower() != ".txt"] or paths
    shards = [path for path in paths if _SHARD.fullmatch(path.stem)]
    if len(paths) > 1 and (len(shards) != len(paths) or len({path.suffix for path in paths}) > 1):
        raise DataError(f"{paths[0]} and {paths[1].name} play the same role; keep one of them")
    return paths
