"""`sgate serve`: an OpenAI-compatible server over a model folder."""

import argparse
import os

from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.server.options import ServerOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate serve OUT [options] [-- ENGINE ARGS]"
    parser.epilog = (
        "ENGINE ARGS: --slots N, --max-model-len N, --threads N, --prefill-chunk N; of onnx "
        "also --precision fp32, fp16, int8 or int4; of vllm, all that `vllm serve` takes"
    )
    parser.set_defaults(engine_arguments=[])
    parser.add_argument("out", help="model folder, converted or plain")
    parser.add_argument(
        "--engine", default="auto", help="auto, onnx, vllm or torch (default: auto)"
    )
    add_flags(parser, ServerOptions)


def run(args: argparse.Namespace) -> int:
    from sgate_serve.checkpoint import Checkpoint
    from sgate_serve.engines import ENGINES, choose_engine, import_target, parse_options
    from sgate_serve.prepare import check_task, load_slot_engine
    from sgate_serve.server import LoadedModel, serve

    model = Checkpoint.open(args.out)
    engine = choose_engine(args.engine)
    # A flag shows in the process list; the variable does not.
    if args.api_key is None:
        args.api_key = os.environ.get("SGATE_API_KEY")
    options = options_from(args, ServerOptions)
    own_server = ENGINES[engine].server
    if own_server is not None:
        import_target(own_server)(model.folder, options, args.out, args.engine_arguments)
    check_task(model)
    slots = parse_options(engine, args.engine_arguments)

    def load() -> LoadedModel:
        return LoadedModel.from_folder(load_slot_engine(engine, model, slots), model.folder)

    return serve(options, load)
