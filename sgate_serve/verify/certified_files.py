"""Which files a certificate is about, besides the weights: a digest over all of them.

The digest of the model (`Checkpoint.digest`) leaves out what no forward pass depends on, such as
the end of text or the names of labels. A verification compares these files all the same.
"""

import hashlib
import json

from converters.to_gguf import GGUF_FILE
from sgate_serve.architecture.family import BASE
from sgate_serve.checkpoint.companions import companion_names
from sgate_serve.checkpoint.digests import file_digest
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR, WEIGHTS_FILE
from sgate_serve.plan import PLAN_FILE

GRAPH_FILES = (f"{ONNX_DIR}/{GRAPH_FILE}", f"{ONNX_DIR}/{WEIGHTS_FILE}", GGUF_FILE)


def files_digest(model: Checkpoint) -> str:
    """Return a sha256 over (name, sha256) of config, plan, companion files, ONNX graph and GGUF.

    A file that is missing counts as well. Raises CheckpointError for one that cannot be read.
    """
    # Files of sentence-transformers count for any task, as they are compared for any.
    companions = companion_names(model.folder, BASE)
    digest = hashlib.sha256()
    for name in sorted({CONFIG_FILE, PLAN_FILE, *GRAPH_FILES, *companions}):
        if (model.folder / name).is_file():
            entry = [name, file_digest(model.folder / name)]
            digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest()
