"""The transformers side of the format: `import sgate_serve.models` registers `model_type: sgate`.

Afterwards AutoConfig and the AutoModel classes load a pruned folder like any other; no remote code.
Each family of `sgate_serve.families` has its config, base model and causal LM here, named as the
stock ones with `SGate` before.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sgate_serve.families import FAMILIES
from sgate_serve.models.configuration import CONFIGS, SGateConfig
from sgate_serve.models.modeling import BASE_MODELS, CAUSAL_LMS
from sgate_serve.spec import SGATE_MODEL_TYPE

AutoConfig.register(SGATE_MODEL_TYPE, SGateConfig, exist_ok=True)
for _name in FAMILIES:
    AutoModel.register(CONFIGS[_name], BASE_MODELS[_name], exist_ok=True)
    AutoModelForCausalLM.register(CONFIGS[_name], CAUSAL_LMS[_name], exist_ok=True)

__all__ = ["BASE_MODELS", "CAUSAL_LMS", "CONFIGS", "SGateConfig"]
