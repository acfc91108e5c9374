"""The transformers side of the format: `import sgate_serve.models` registers `model_type: sgate`.

Afterwards AutoConfig and the AutoModel classes load a pruned folder like any other; no remote code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sgate_serve.models.configuration import SGateConfig, SGateLlamaConfig
from sgate_serve.models.modeling import SGateLlamaForCausalLM, SGateLlamaModel
from sgate_serve.spec import SGATE_MODEL_TYPE

AutoConfig.register(SGATE_MODEL_TYPE, SGateConfig, exist_ok=True)
AutoModel.register(SGateLlamaConfig, SGateLlamaModel, exist_ok=True)
AutoModelForCausalLM.register(SGateLlamaConfig, SGateLlamaForCausalLM, exist_ok=True)

__all__ = ["SGateConfig", "SGateLlamaConfig", "SGateLlamaForCausalLM", "SGateLlamaModel"]
