"""The transformers side of the format: importing this module registers `model_type: sgate`.

Afterwards AutoConfig and the AutoModel classes load a pruned folder like any other, without remote
code. Each family of `sgate_serve.architecture.families` has a config class and one model class per
task here, named like the stock ones with the prefix `SGate`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import BASE, CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.models.configuration import CONFIGS, SGateConfig
from sgate_serve.models.modeling import MODELS

AUTO_CLASSES = {
    BASE: AutoModel,
    CAUSAL_LM: AutoModelForCausalLM,
    CLASSIFICATION: AutoModelForSequenceClassification,
}

AutoConfig.register(SGATE_MODEL_TYPE, SGateConfig, exist_ok=True)
for _name, _models in MODELS.items():
    for _task, _model in _models.items():
        AUTO_CLASSES[_task].register(CONFIGS[_name], _model, exist_ok=True)
        # Our classes read the names in files that their stock classes read.
        _mapping = get_checkpoint_conversion_mapping(FAMILIES[_name].tasks[_task].model_class)
        if _mapping is not None:
            register_checkpoint_conversion_mapping(_model.__name__, _mapping, overwrite=True)

# The classes of some mixtures call the experts' block otherwise than files do.
_RENAMES = {
    old: new
    for family in FAMILIES.values()
    for old, new in ({} if family.mixture is None else family.mixture.renames).items()
}
register_checkpoint_conversion_mapping(
    SGATE_MODEL_TYPE,
    [WeightRenaming(f".{old}.", f".{new}.") for old, new in _RENAMES.items()],
    overwrite=True,
)

__all__ = ["AUTO_CLASSES", "CONFIGS", "MODELS", "SGateConfig"]
