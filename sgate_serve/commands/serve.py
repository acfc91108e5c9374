"""`sgate serve`: runs an OpenAI-compatible server on a model folder."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.commands.flags import add_flags, add_keep_flag, options_from
from sgate_serve.errors import SgateError
from sgate_serve.server.server_options import ServerOptions

if TYPE_CHECKING:
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.server import ServedModel, ServedNames
    from sgate_serve.server.classifier_head import ClassifierHead


EPILOG = """\
ENGINE ARGS, after `--`:
  --slots N, --max-model-len N, --threads N, --prefill-chunk N
  with onnx also --precision fp32, fp16, int8, int4 or auto, --kv-cache-mib N, --kv-cache-dtype auto
    or int8, --batch-invariant and --device cpu or cuda
  with --draft also --draft-tokens N and, with onnx, --draft-precision
  for classifiers and embedding models --batch-tokens N instead of slots and chunks
  with vllm the arguments of `vllm serve`

examples:
  sgate serve my-pruned --port 8000
  sgate serve my-pruned --served-model-name my-model,gpt-4o-mini --api-key KEY
  sgate serve my-pruned -- --slots 16 --precision int4 --threads 2
  sgate serve my-pruned --keep 0.6    # a size that it was converted with
  sgate serve my-pruned --model dense=my-model
  sgate serve my-pruned --shadow my-model --shadow-share 0.2
  sgate serve my-model --draft my-pruned
  sgate serve my-pruned --engine vllm -- --tensor-parallel-size 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate serve OUT [options] [-- ENGINE ARGS]"
    parser.epilog = EPILOG
    parser.set_defaults(engine_arguments=[])
    parser.add_argument("out", metavar="OUT", help="model folder, converted or plain")
    parser.add_argument(
        "--engine", default="auto", help="auto, onnx, vllm or torch (default: auto)"
    )
    add_keep_flag(parser)
    add_flags(parser, ServerOptions)


def run(args: argparse.Namespace) -> int:
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.engines.table import ENGINES, choose_engine, import_object
    from sgate_serve.loaders.sized_folder import open_size
    from sgate_serve.server import ServedNames, serve
    from sgate_serve.server.request_log import start_logging

    # Unlike a flag, the variable is not shown in process lists.
    if args.api_key is None:
        args.api_key = os.environ.get("SGATE_API_KEY")
    options = options_from(args, ServerOptions)
    if options.log_format == "json":
        start_logging(options.log_format)  # whoever reads the log reads its first lines too
    model = open_size(args.out, args.keep)
    engine = choose_engine(args.engine, model.spec.for_torch_alone)
    names = ServedNames.of(args.out, options.served_model_name)
    own_server = ENGINES[engine].server
    if own_server is not None:
        every = (*names.listed, *names.aliases)
        import_object(own_server)(model.folder, options, every, args.engine_arguments)

    words = with_draft(args.engine_arguments, options.draft, model)

    def loader_of(
        model: "Checkpoint", names: ServedNames, *, drafts: bool = False
    ) -> "Callable[[], ServedModel]":
        if model.spec.task == CAUSAL_LM:
            return generator_of(engine, model, words, names, drafts=drafts)
        return reader_of(engine, model, args.engine_arguments, names)

    others = {
        name: loader_of(Checkpoint.open(folder), ServedNames((name,)))
        for name, folder in named_folders(options.model, names).items()
    }
    load_shadow = None
    if options.shadow is not None:
        shadow = Checkpoint.open(options.shadow)
        check_shadow(model, shadow)
        load_shadow = loader_of(shadow, ServedNames.of(options.shadow))
    load = loader_of(model, names, drafts=True)
    return serve(
        options,
        lambda: replace(load(), tool_call_parser=options.tool_call_parser),
        load_shadow,
        others,
    )


def with_draft(arguments: Sequence[str], draft: str | None, model: "Checkpoint") -> list[str]:
    """Return the engine's words with `--draft`.

    Raises SgateError if they have it already, and for a model that does not generate text.
    """
    if draft is None:
        return [*arguments]
    if model.spec.task != CAUSAL_LM:
        raise SgateError(f"--draft: {model.folder} does not generate text; leave it out")
    if any(word.partition("=")[0] == "--draft" for word in arguments):
        raise SgateError("--draft is given before `--` and after it; give it once")
    return [*arguments, "--draft", draft]


def named_folders(pairs: Sequence[str], first: "ServedNames") -> dict[str, str]:
    """Return name → folder of each NAME=FOLDER; raise SgateError for others and for taken names."""
    folders: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise SgateError(f"--model {pair}: expected NAME=FOLDER")
        if name in (*folders, *first.listed, *first.aliases):
            raise SgateError(f"--model {pair}: another model has the name {name}; choose one")
        folders[name] = folder
    return folders


def check_shadow(model: "Checkpoint", shadow: "Checkpoint") -> None:
    """Raise SgateError unless both models generate text."""
    for one in (model, shadow):
        if one.spec.task != CAUSAL_LM:
            raise SgateError(f"--shadow compares generative models, and {one.folder} is none")


def generator_of(
    engine: str,
    model: "Checkpoint",
    arguments: Sequence[str],
    names: "ServedNames | None" = None,
    *,
    drafts: bool = True,
) -> "Callable[[], ServedModel]":
    """Check the arguments and return a function that loads a causal LM, and its draft model."""
    from sgate_serve.engines.table import parse_options
    from sgate_serve.loaders.serving import load_slot_engine
    from sgate_serve.server import ServedModel

    given = parse_options(engine, arguments)
    options = given if drafts else given.without_draft()
    return lambda: ServedModel.from_folder(
        load_slot_engine(engine, model, options), model.folder, names=names
    )


def reader_of(
    engine: str,
    model: "Checkpoint",
    arguments: Sequence[str],
    names: "ServedNames | None" = None,
) -> "Callable[[], ServedModel]":
    """Check the arguments and return a function that loads a classifier or embedding model."""
    from sgate_serve.engines.table import parse_pooling_options
    from sgate_serve.loaders.serving import load_pooling_engine, pooling_of
    from sgate_serve.server import ServedModel

    options = parse_pooling_options(engine, arguments)
    if model.spec.task != BASE:
        head = head_of(model.config, str(model.folder / CONFIG_FILE))
        return lambda: ServedModel.from_folder(
            load_pooling_engine(engine, model, options),
            model.folder,
            "classify",
            names=names,
            head=head,
        )
    pooling = pooling_of(model)
    return lambda: ServedModel.from_folder(
        load_pooling_engine(engine, model, options),
        model.folder,
        "embed",
        names=names,
        pooling=pooling,
    )


def head_of(config: Mapping[str, Any], source: str) -> "ClassifierHead":
    """Return a classifier's head, with transformers' label names if the config has none.

    Raises CheckpointError naming `source` for labels that are not numbered from 0.
    """
    from sgate_serve.architecture.config import label_names, num_labels
    from sgate_serve.server.classifier_head import ClassifierHead, activation_of

    names = label_names(config, source)
    if names is None:
        names = tuple(f"LABEL_{index}" for index in range(num_labels(config)))
    activation = activation_of(config, source) if len(names) == 1 else None
    return ClassifierHead.of(names, config.get("problem_type"), source, activation)
