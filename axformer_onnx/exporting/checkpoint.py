"""A Hugging Face checkpoint: its model in float32, what it takes as input, the files that go beside the graph.

B batch, S tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from axformer_onnx.data import length_limit, read_json
from axformer_onnx.errors import ModelError, RuntimeFailure, UsageError
from axformer_onnx.exporting.quiet import one_line, quiet
from axformer_onnx.exporting.sentence import FILES, MODULES, Sentence, is_sentence_folder, sentence_module, sentence_of

Attention = Literal["sdpa", "eager"]
INSTALL = "pip install 'axformer-onnx[export]'"

# What a head is called: end of the architecture's name -> (transformers' auto class, optimum's name of the task).
HEADS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}
SENTENCE = "SentenceEmbedding"
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model",
    "preprocessor_config.json",
)  # fmt: skip
_NOT_OF_TORCH = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "rust_model*", "tf_model*")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    name        of its folder, or on the hub
    folder      None: it came from the hub
    module      the torch model: float32, eval mode
    head        one of HEADS, or SENTENCE for a folder of sentence-transformers
    sentence    how its embeddings are made of tokens, else None
    attention   sdpa | eager, as loaded
    """

    name: str
    folder: Path | None
    module: Any
    head: str
    attention: str
    sentence: Sentence | None = None

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.module.config

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs: pixel_values, or input_ids, attention_mask and, where they have an effect, types."""
        if self.module.main_input_name == "pixel_values":
            return ("pixel_values",)
        takes = inspect.signature(self.module.forward).parameters
        # RoBERTa takes token types but knows one only: an input without effect is left out, as optimum does.
        types = "token_type_ids" in takes and (getattr(self.config, "type_vocab_size", 0) or 0) > 1
        return ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))

    @functools.cached_property
    def longest(self) -> int:
        """Tokens that fit."""
        settings = read_json(self.folder / "tokenizer_config.json") if self.folder else {}
        return length_limit(settings, self.config.to_dict())

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the configuration and all weights."""
        digest = hashlib.sha256(self.config.to_json_string().encode())
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(memoryview(value.contiguous().numpy()).cast("B") if value.numel() else b"")
        return digest.hexdigest()


def load_checkpoint(checkpoint: str | Path, attention: Attention | None = None) -> Checkpoint:
    """Load a folder, or a name on the Hugging Face hub. Half-precision weights become float32.

    Raises: RuntimeFailure without torch or network; UsageError, ModelError for what is not a fine-tuned model.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise RuntimeFailure(f"export needs torch and transformers ({one_line(error)}): {INSTALL}") from None
    folder = _folder(checkpoint)
    if folder is None:
        _require_reachable(str(checkpoint))
        folder, given = _sentence_snapshot(str(checkpoint)), str(checkpoint)
    else:
        given = folder.resolve().name
    source, local = str(folder or checkpoint), folder is not None
    sentence = sentence_of(folder) if folder is not None and is_sentence_folder(folder) else None
    config = _guarded(source, lambda: transformers.AutoConfig.from_pretrained(source, local_files_only=local))
    head = SENTENCE if sentence else _head(source, config)
    loader = transformers.AutoModel if sentence else getattr(transformers, HEADS[head][0])
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "local_files_only": local}
    if attention is not None:
        options["attn_implementation"] = attention
    module, info = _guarded(source, lambda: loader.from_pretrained(source, output_loading_info=True, **options))
    unread = "pooler." if sentence else ()  # BERT's own pooler, which embeddings do not read
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unread))
    if missing:
        raise ModelError(
            f"{source}: no weights for {missing[0]} ({len(missing)} missing): the checkpoint is not a fine-tuned {head}"
        )
    attended = str(module.config._attn_implementation)
    if sentence:
        module = sentence_module(module, sentence)
    return Checkpoint(given, folder, module.eval(), head, attended, sentence)


def copy_files(checkpoint: Checkpoint, out: Path) -> list[str]:
    """Put config.json and the tokenizer's files into `out`; a slow tokenizer is converted. Returns notes.

    Raises: RuntimeFailure where the conversion needs a package that is absent.
    """
    if checkpoint.folder is None:
        with quiet():
            checkpoint.config.save_pretrained(out)
    else:
        shutil.copyfile(checkpoint.folder / "config.json", out / "config.json")
        for name in (*_COPIED, *(FILES if checkpoint.sentence else ())):
            if (checkpoint.folder / name).is_file():
                (out / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(checkpoint.folder / name, out / name)
    if "input_ids" not in checkpoint.inputs or (out / "tokenizer.json").is_file():
        return []
    if checkpoint.folder is not None and not any((out / name).is_file() for name in _COPIED):
        return ["the checkpoint has no tokenizer: put its tokenizer.json beside model.onnx before scoring text"]
    _save_fast_tokenizer(checkpoint, out)
    return ["the tokenizer was converted to tokenizer.json"] if checkpoint.folder else []


def _save_fast_tokenizer(checkpoint: Checkpoint, out: Path) -> None:
    import transformers

    source, local = str(checkpoint.folder or checkpoint.name), checkpoint.folder is not None
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=local)
            tokenizer.save_pretrained(out)
    except Exception as error:  # many kinds, from many packages
        raise RuntimeFailure(
            f"{source}: its tokenizer could not be converted to tokenizer.json ({one_line(error)}); "
            "SentencePiece tokenizers need: pip install sentencepiece protobuf"
        ) from None
    if not (out / "tokenizer.json").is_file():
        raise RuntimeFailure(f"{source}: {type(tokenizer).__name__} has no fast form; a tokenizer.json is needed")


def _folder(checkpoint: str | Path) -> Path | None:
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in it; expected a Hugging Face checkpoint folder")
        return path
    if path.exists():
        raise UsageError(f"{path}: a file; expected a Hugging Face checkpoint folder, or a name on the hub")
    if isinstance(checkpoint, Path) or not _HUB_NAME.fullmatch(checkpoint):
        raise UsageError(
            f"{checkpoint}: no such folder; expected a Hugging Face checkpoint folder, or a name on the hub"
        )
    return None


def _require_reachable(name: str) -> None:
    """One quick question to the hub, unless `name` is in its local cache: transformers would ask for half a minute."""
    import huggingface_hub

    try:
        with quiet():
            if not huggingface_hub.try_to_load_from_cache(name, "config.json"):
                huggingface_hub.HfApi().model_info(name, timeout=10)
    except Exception as error:  # huggingface_hub's and its HTTP library's own
        raise RuntimeFailure(
            f"{name}: no such folder here, and the Hugging Face hub did not give it ({type(error).__name__}): "
            "check the name and the network, or give a local checkpoint folder"
        ) from None


def _sentence_snapshot(name: str) -> Path | None:
    """The folder of the hub's model of that name where it is of sentence-transformers, else None."""
    import huggingface_hub

    try:
        with quiet():
            huggingface_hub.hf_hub_download(name, MODULES)
            return Path(huggingface_hub.snapshot_download(name, ignore_patterns=list(_NOT_OF_TORCH)))
    except Exception:  # huggingface_hub's own: there is no such file, or no network and not all of it in the cache
        return None


def _guarded(source: str, load: Any) -> Any:
    try:
        with quiet():
            return load()
    except Exception as error:  # OSError, ValueError, safetensors' and torch's own
        raise ModelError(f"{source}: transformers cannot load it: {one_line(error)}") from None


def _head(source: str, config: Any) -> str:
    architectures = config.architectures or []
    for architecture in architectures:
        for head in HEADS:
            if architecture.endswith(head):
                return head
    found = ", ".join(architectures) or "no architecture"
    raise UsageError(
        f"{source}: config.json names {found}, expected one that ends in {', '.join(HEADS)}, or a sentence-transformers folder "
        "with modules.json"
    )
