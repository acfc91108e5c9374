"""GGUF files as model folders: transformers dequantizes them, and what it passes over is checked.

It reads neither scaled rotation nor biases of llama, takes heads of qwen3 for 128 wide, and cuts
text as GPT-2 does where it does not know the name of the steps.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.checkpoint.writer import FolderWriter, TensorHeader, new_folder
from sgate_serve.errors import CheckpointError, SgateError
from sgate_serve.models.progress import hidden_bars
from sgate_serve.models.refusals import refused
from sgate_serve.text.chat_template import TEMPLATE_DIR, TEMPLATE_FILE, TOOLS_NAME
from sgate_serve.text.generation_settings import GENERATION_FILE
from sgate_serve.text.pre_tokenizers import PREFIX, SPACES, serialized_steps
from sgate_serve.text.tokenization import METASPACE
from sgate_serve.text.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

logger = logging.getLogger(__name__)

ARCHITECTURES = ("llama", "qwen2", "qwen3")
REMEDY = "give the checkpoint that the file was made from"
MAX_SHARD_BYTES = 4 * 2**30
# What transformers records about the machine and the file, or computes anew.
LEFT_OUT = ("_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version")
# Llama 3.1 and 3.2 differ in the factor alone.
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# Keys of chat templates, and the files of a folder that hold them.
TEMPLATES = {
    "chat_template": TEMPLATE_FILE,
    f"chat_template.{TOOLS_NAME}": f"{TEMPLATE_DIR}/{TOOLS_NAME}.jinja",
}
# llama.cpp adds the first token for these unless the file says otherwise.
ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken")


@dataclass(frozen=True)
class GgufFile:
    """The metadata and the tensors of a file.

    `alone` is the file in a folder of its own: transformers would read what lies beside it.
    """

    path: Path
    alone: Path

    @cached_property
    def reader(self) -> Any:
        """Raise CheckpointError for a file that is not GGUF, or is damaged."""
        try:
            return gguf.GGUFReader(self.path)
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"{self.path} cannot be read as GGUF ({error!s:.200}); download or copy it again"
            ) from error

    def get(self, key: str, default: Any = None) -> Any:
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    def own(self, key: str, default: Any = None) -> Any:
        """Return the value of a key that belongs to the architecture."""
        return self.get(f"{self.architecture}.{key}", default)

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.reader.tensors)

    def vector(self, name: str) -> NDArray[np.float64]:
        found = next(tensor for tensor in self.reader.tensors if tensor.name == name)
        return np.asarray(found.data, np.float64)

    def check(self) -> None:
        """Raise CheckpointError, naming the obstacle, for a model that would be read otherwise."""
        architecture = self.architecture
        if architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.path}: architecture {architecture:.40} is not read from GGUF "
                f"({', '.join(ARCHITECTURES)} are); {REMEDY}"
            )
        self._check_sizes()
        counts = (self.own("attention.head_count"), self.own("feed_forward_length"))
        if any(isinstance(count, list) for count in counts) or self.own("expert_count"):
            raise CheckpointError(
                f"{self.path}: its layers differ or have experts, which is not read from GGUF; "
                f"{REMEDY}"
            )
        biases = sorted(name for name in self.names if name.endswith(".bias"))
        if biases and architecture != "qwen2":
            raise CheckpointError(
                f"{self.path} has the bias {biases[0]}, which transformers leaves out for "
                f"{architecture}; {REMEDY}"
            )

    def _check_sizes(self) -> None:
        """Raise CheckpointError for sizes that are missing, or that transformers passes over."""
        blocks = {name.split(".")[1] for name in self.names if name.startswith("blk.")}
        if self.own("block_count") != len(blocks):
            raise CheckpointError(
                f"{self.path}: its metadata and tensors contradict each other: block_count is "
                f"{self.own('block_count')!r:.40}, and there are {len(blocks)}; {REMEDY}"
            )
        if self.own("attention.layer_norm_rms_epsilon") is None:
            raise CheckpointError(
                f"{self.path} lacks {self.architecture}.attention.layer_norm_rms_epsilon; {REMEDY}"
            )
        heads = self.own("attention.head_count")
        width = self.own("attention.key_length")
        if width is None and isinstance(heads, int) and heads:
            width = self.own("embedding_length", 0) // heads
        if self.own("rope.dimension_count", width) != width:
            raise CheckpointError(
                f"{self.path} rotates {self.own('rope.dimension_count')!r:.40} of {width} "
                f"dimensions of a head, which is not read from GGUF; {REMEDY}"
            )

    def token_id(self, name: str) -> int | None:
        """Return a special token's id, None for none; raise CheckpointError for one without token.

        Some files write -1 for none, in 32 bits without a sign.
        """
        key = f"tokenizer.ggml.{name}_token_id"
        index, size = self.get(key), len(self.get("tokenizer.ggml.tokens", ()))
        if index is None or index in (-1, 2**32 - 1):
            return None
        if not isinstance(index, int) or (size and not 0 <= index < size):
            raise CheckpointError(
                f"{self.path}: {key} is {index!r:.40}, and there are {size} tokens; {REMEDY}"
            )
        return index

    def config(self) -> Any:
        """Return transformers' config, with what it does not read of the file."""
        config = AutoConfig.from_pretrained(self.alone.parent, gguf_file=self.alone.name)
        width = self.own("attention.key_length")
        if width is not None:
            config.head_dim = width
        if getattr(config, "sliding_window", None) is not None:
            config.sliding_window = None
        for name in ("bos", "eos"):
            # Not those of the class, which may be words of this tokenizer.
            setattr(config, f"{name}_token_id", self.token_id(name))
        scaling = self._scaling()
        if scaling is not None:
            config.rope_parameters = {**config.rope_parameters, **scaling}
        return config

    def _scaling(self) -> dict[str, Any] | None:
        """Return the settings of a scaled rotation; raise CheckpointError for unknown ones."""
        # llama.cpp takes a factor without a type, and its old name, for linear.
        kind = self.own("rope.scaling.type", "linear")
        factor = self.own("rope.scaling.factor", self.own("rope.scale_linear"))
        if "rope_freqs.weight" in self.names:
            factors = self.vector("rope_freqs.weight")
            if (factors == 1).all():
                return None
            found = self._scaling_of(factors)
        elif kind == "none" or factor in (None, 0, 1):
            return None
        elif kind == "linear":
            found = {"rope_type": "linear", "factor": float(factor)}
        else:
            found = None
        if found is None:
            raise CheckpointError(
                f"{self.path} scales its rotation ({kind}) otherwise than by one factor or as "
                f"Llama 3 does; {REMEDY}"
            )
        return found

    def _scaling_of(self, factors: NDArray[np.float64]) -> dict[str, Any] | None:
        """Return the settings that give these divisors of frequencies; None for unknown ones."""
        factor = float(np.float32(factors.max()))
        if (factors == factors[0]).all():
            return {"rope_type": "linear", "factor": factor}
        theta = self.own("rope.freq_base", 10000.0)
        exponents = np.arange(len(factors)) / len(factors)
        turns = LLAMA3["original_max_position_embeddings"] / (2 * np.pi) * theta**-exponents
        low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
        share = np.clip((turns - low) / (high - low), 0, 1)
        expected = 1 / ((1 - share) / factor + share)
        if not np.allclose(factors, expected, rtol=1e-4):
            return None
        return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def write_dequantized(path: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder in fp32, with its tokenizer and template.

    fp32, as the products of most types have more digits than fp16. Raises CheckpointError for a
    file that cannot be read, or if `folder` is not empty.
    """
    with _refusals_named(path), TemporaryDirectory(prefix="sgate-gguf-") as place:
        file = GgufFile(path, Path(place) / path.name)
        file.alone.symlink_to(path.resolve())
        file.check()
        config, tokenizer = file.config(), tokenizer_of(file)
        # Its bar cannot be turned off otherwise.
        with redirect_stderr(StringIO()), hidden_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                place,
                gguf_file=path.name,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
            )
    _check_report(path, report)
    stored = {key: value for key, value in config.to_diff_dict().items() if key not in LEFT_OUT}
    stored |= {"architectures": [type(model).__name__], "dtype": "float32"}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    tensors = {k: v.numpy() for k, v in model.state_dict().items() if k not in tied}
    headers = [TensorHeader(name, "F32", tuple(array.shape)) for name, array in tensors.items()]
    with _refusals_named(path), new_folder(folder) as writer:
        writer.write_json(CONFIG_FILE, stored)
        if tokenizer is not None:
            _write_tokenizer(writer, file, tokenizer)
        writer.write_weights(headers, iter(tensors.values()), MAX_SHARD_BYTES)


def _check_report(path: Path, report: Mapping[str, Any]) -> None:
    """Raise CheckpointError for tensors that were left out, or filled with random numbers."""
    for kind, found in report.items():
        if found:
            name = next(iter(sorted(map(str, found))))
            raise CheckpointError(
                f"{path}: transformers loads it with {kind.replace('_', ' ')}, such as {name:.80}; "
                f"{REMEDY}"
            )


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """Turn whatever is raised about a file that lacks something into a CheckpointError."""
    try:
        yield
    except (SgateError, OSError, MemoryError):
        raise
    except Exception as error:
        raise refused(path, error, "does not read it", REMEDY, longest=200) from error


def tokenizer_of(file: GgufFile) -> Tokenizer | None:
    """Return the tokenizer of a file as llama.cpp has it; None if the file has none.

    Raises CheckpointError for one that transformers or this release does not know.
    """
    kind, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    if kind in (None, "none", "no_vocab"):
        return None
    steps = serialized_steps(pre) if kind == "gpt2" else ({}, False)
    if kind not in ("gpt2", "llama") or steps is None:
        raise CheckpointError(
            f"{file.path}: a tokenizer {kind!r:.40} with the steps {pre!r:.40} is not read from "
            f"GGUF; {REMEDY}"
        )
    read = AutoTokenizer.from_pretrained(file.alone.parent, gguf_file=file.alone.name)
    contents = json.loads(read.backend_tokenizer.to_str())
    # transformers adds tokens that it expects.
    size = len(file.get("tokenizer.ggml.tokens"))
    contents["added_tokens"] = [own for own in contents["added_tokens"] if own["id"] < size]
    if kind == "gpt2":
        contents["pre_tokenizer"], contents["model"]["ignore_merges"] = steps
    else:
        contents |= _sentence_pieces(file.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = Tokenizer.from_str(json.dumps(contents))
    _frame(tokenizer, file, kind, pre)
    return tokenizer


def _sentence_pieces(adds_space: bool) -> dict[str, Any]:
    """Return the steps before and after SentencePiece's merges, which transformers has as one."""
    prefix = [PREFIX] if adds_space else []
    back = {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, SPACES]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
    }


def _frame(tokenizer: Tokenizer, file: GgufFile, kind: str, pre: str) -> None:
    """Put the tokens around texts that llama.cpp puts there."""
    adds_bos = file.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in ADDS_BOS)
    adds_eos = file.get("tokenizer.ggml.add_eos_token", False)
    tokens = _special_tokens(file)
    bos = [tokens["bos_token"]] if adds_bos and "bos_token" in tokens else []
    eos = [tokens["eos_token"]] if adds_eos and "eos_token" in tokens else []
    frame = [(token, tokenizer.token_to_id(token)) for token in (*bos, *eos)]
    whole = [*bos, "$A", *eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=whole, pair=[*whole, "$B"], special_tokens=frame
    )


def _special_tokens(file: GgufFile) -> dict[str, str]:
    ids = {name: file.token_id(key) for name, key in SPECIAL.items()}
    tokens = file.get("tokenizer.ggml.tokens")
    return {name: tokens[index] for name, index in ids.items() if index is not None}


def _write_tokenizer(writer: FolderWriter, file: GgufFile, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(writer.path(TOKENIZER_FILE)))
    # The class that reads tokenizer.json as it stands.
    settings: Mapping[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **_special_tokens(file),
    }
    writer.write_json(TOKENIZER_CONFIG_FILE, settings)
    for key, name in TEMPLATES.items():
        template = file.get(f"tokenizer.{key}")
        if template is None:
            continue
        if not isinstance(template, str):
            raise CheckpointError(f"{file.path}: tokenizer.{key} is not a text; {REMEDY}")
        writer.path(name).write_text(template, encoding="utf-8")
    ends = [file.token_id(key) for key in ("eos", "eot")]
    given = [index for index in dict.fromkeys(ends) if index is not None]
    if len(given) > 1:
        writer.write_json(GENERATION_FILE, {"eos_token_id": given})
