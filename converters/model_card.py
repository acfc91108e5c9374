"""The model card of a converted folder: how much was removed, and how to load the model."""

from collections.abc import Collection

from sgate_serve.architecture.family import BASE, CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import is_stock_shape
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.onnx_format.precision import INT4
from sgate_serve.plan import Plan
from sgate_serve.plan.figures import Figures
from sgate_serve.plan.placement import pruned_spec

CARD_FILE = "README.md"
# `sgate verify` replaces the text between the two.
CARD_START, CARD_END = "<!-- verification -->", "<!-- /verification -->"

CARD = """---
library_name: transformers
tags: [pruned, sgate]
---

# Pruned {family} model

`sgate convert` removed {removed:.1%} of the weights of the linear layers inside the blocks
({overall:.1%} of all parameters). Every removed weight contributed exactly zero to the masked dense
model, or a constant that is now part of a bias. `sgate verify` checks this and writes
`verification.json`. The result:

{start}
not verified yet
{end}

| fraction of the block weights | |
|---|---|
| in closed rows or columns | {naive:.1%} |
| provably dead | {compiled:.1%} |
| removed without index work | {index_free:.1%} |
| removed | {removed:.1%} |
| not executed, counting the padding of the target engine | {executed:.1%} |

```python
{code}
```
{notes}
`sgate_plan.json` lists every removed unit with the rule and the reason for its removal.
"""

AUTO_CLASSES = {
    CAUSAL_LM: "AutoModelForCausalLM",
    CLASSIFICATION: "AutoModelForSequenceClassification",
    BASE: "AutoModel",
}
CODE = """from transformers import {auto}
model = {auto}.from_pretrained("THIS_FOLDER")"""
REGISTERED = """import sgate_serve.models  # registers model_type "sgate"; no remote code
"""


INT8_NOTE = """
The weights of the linear layers inside the blocks are int8 (W8A8 in the compressed-tensors format).
Rounding to int8 is an approximation; `verification.json` records its error. To load the weights,
transformers needs the compressed-tensors package. It cannot load linear layers with index vectors
(`sgate.lowered`).
"""

INT4_NOTE = """
The ONNX graph in `onnx/` is in int4. Rounding to int4 is an approximation of the weights in this
folder; `verification.json` records its error.
"""


GGUF_NOTE = """
`gguf/model.gguf` is the model for llama.cpp: `llama-server -m gguf/model.gguf`.
"""


def model_card(
    plan: Plan, dense: ModelSpec, precision: str | None = None, formats: Collection[str] = ()
) -> str:
    """Return the card as Markdown.

    `dense` is the architecture before pruning, `precision` and `formats` the values of
    `--precision` and `--to`.
    """
    notes = {
        INT8_NOTE: precision == INT8,
        INT4_NOTE: precision == INT4 and "onnx" in formats,
        GGUF_NOTE: "gguf" in formats,
    }
    figures = Figures.of(plan, dense)
    code = CODE.format(auto=AUTO_CLASSES[dense.task])
    return CARD.format(
        family=plan.family,
        start=CARD_START,
        end=CARD_END,
        **vars(figures),
        notes="".join(note for note, holds in notes.items() if holds),
        code=code if is_stock_shape(pruned_spec(plan, dense)) else REGISTERED + code,
    )
