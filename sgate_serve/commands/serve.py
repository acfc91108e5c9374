"""`sgate serve`: an OpenAI-compatible server over a model folder."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.server.server_options import ServerOptions

if TYPE_CHECKING:
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.server import LoadedModel
    from sgate_serve.server.labels import Labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate serve OUT [options] [-- ENGINE ARGS]"
    parser.epilog = (
        "ENGINE ARGS: --slots N, --max-model-len N, --threads N, --prefill-chunk N; of onnx "
        "also --precision fp32, fp16, int8 or int4; for classifiers and embedding models "
        "--batch-tokens N; of vllm, all that `vllm serve` takes"
    )
    parser.set_defaults(engine_arguments=[])
    parser.add_argument("out", help="model folder, converted or plain")
    parser.add_argument(
        "--engine", default="auto", help="auto, onnx, vllm or torch (default: auto)"
    )
    add_flags(parser, ServerOptions)


def run(args: argparse.Namespace) -> int:
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.engines import ENGINES, choose_engine, import_target
    from sgate_serve.server import serve

    model = Checkpoint.open(args.out)
    engine = choose_engine(args.engine)
    # A flag shows in the process list; the variable does not.
    if args.api_key is None:
        args.api_key = os.environ.get("SGATE_API_KEY")
    options = options_from(args, ServerOptions)
    own_server = ENGINES[engine].server
    if own_server is not None:
        import_target(own_server)(model.folder, options, args.out, args.engine_arguments)
    loader = generator_of if model.spec.task == CAUSAL_LM else reader_of
    return serve(options, loader(engine, model, args.engine_arguments))


def generator_of(
    engine: str, model: "Checkpoint", arguments: Sequence[str]
) -> "Callable[[], LoadedModel]":
    """Return what loads a causal LM; its arguments are checked at once."""
    from sgate_serve.engines import parse_options
    from sgate_serve.loaders.engines import load_slot_engine
    from sgate_serve.server import LoadedModel

    options = parse_options(engine, arguments)
    return lambda: LoadedModel.from_folder(load_slot_engine(engine, model, options), model.folder)


def reader_of(
    engine: str, model: "Checkpoint", arguments: Sequence[str]
) -> "Callable[[], LoadedModel]":
    """Return what loads a classifier or an embedding model; its arguments are checked at once."""
    from sgate_serve.engines import parse_encoder_options
    from sgate_serve.loaders.engines import load_text_encoder, pooling_of
    from sgate_serve.server import LoadedModel

    options = parse_encoder_options(engine, arguments)
    if model.spec.task != BASE:
        labels = labels_of(model.config, str(model.folder / "config.json"))
        return lambda: LoadedModel.from_folder(
            load_text_encoder(engine, model, options), model.folder, "classify", labels=labels
        )
    normalize = pooling_of(model).normalize
    return lambda: LoadedModel.from_folder(
        load_text_encoder(engine, model, options), model.folder, "embed", normalize=normalize
    )


def labels_of(config: Mapping[str, Any], source: str) -> "Labels":
    """Return a classifier's labels, with transformers' names for them if the config has none.

    Raises CheckpointError naming `source` for labels that are not numbered from 0.
    """
    from sgate_serve.architecture.config import label_names, num_labels
    from sgate_serve.server.labels import Labels

    names = label_names(config, source)
    if names is None:
        names = tuple(f"LABEL_{index}" for index in range(num_labels(config)))
    return Labels.of(names, config.get("problem_type"), source)
