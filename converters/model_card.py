"""The model card of a converted folder: what was removed, and how to load the rest."""

from sgate_serve.plan import Plan
from sgate_serve.spec import ModelSpec, is_stock_shape

CARD = """---
library_name: transformers
tags: [pruned, sgate]
---

# Pruned {family} model

`sgate convert` removed {removed:.1%} of the weights of the linears inside the blocks
({overall:.1%} of all parameters). Everything removed contributed exactly nothing to the masked
dense model; `sgate verify` checks that, and `verification.json`, where present, is its certificate.

```python
{code}
```

`sgate_plan.json` lists every removed unit with the rule and the reason.
"""

STOCK_CODE = """from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")"""

SGATE_CODE = """import sgate_serve.models  # registers model_type "sgate"; no remote code
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")"""


def model_card(plan: Plan, dense: ModelSpec) -> str:
    """Return the card as Markdown; `dense` is the architecture before."""
    return CARD.format(
        family=plan.family,
        removed=plan.removed(dense),
        overall=plan.removed_overall(dense),
        code=STOCK_CODE if is_stock_shape(plan.spec(dense)) else SGATE_CODE,
    )
