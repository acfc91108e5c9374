"""The class that transformers' AutoTokenizer chooses for a model folder.

It follows the model type and `tokenizer_class`. A converted folder (`model_type: "sgate"`) is read
like its base.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.errors import CheckpointError
from sgate_serve.text.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

# The class that reads tokenizer.json as it stands.
PLAIN = "PreTrainedTokenizerFast"
PLAIN_NAMES = frozenset({"PreTrainedTokenizer", "TokenizersBackend", "BloomTokenizer"})

# The class of each model type (transformers' TOKENIZER_MAPPING_NAMES); Llama has none.
CLASS_OF_TYPE: Mapping[str, str] = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    **dict.fromkeys(("mistral", "mistral3"), PLAIN),
    "phi3": PLAIN,
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"
    ),
    "roberta": "RobertaTokenizer",
}
# Model types for which transformers distrusts the `tokenizer_class` of the files.
OVERRULES = frozenset({"phi3", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"})

# The classes that sgate-serve builds (tokenizer_pipelines.py), and other names of them.
BUILT = frozenset(
    {
        "BertTokenizer",
        "DistilBertTokenizer",
        "GPT2Tokenizer",
        "GPTNeoXTokenizer",
        "GemmaTokenizer",
        "LlamaTokenizer",
        "Qwen2Tokenizer",
        "Qwen3_5Tokenizer",
        "RobertaTokenizer",
        "XLMRobertaTokenizer",
    }
)
ALIASES: Mapping[str, str] = {
    **dict.fromkeys(PLAIN_NAMES, PLAIN),
    "Phi3Tokenizer": "LlamaTokenizer",
    **dict.fromkeys(
        (
            "ElectraTokenizer",
            "LayoutLMTokenizer",
            "LxmertTokenizer",
            "MobileBertTokenizer",
            "SqueezeBertTokenizer",
        ),
        "BertTokenizer",
    ),
    **dict.fromkeys(
        ("BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "MvpTokenizer"),
        "RobertaTokenizer",
    ),
}
# Classes of transformers that build or split in ways that sgate-serve does not reproduce. Any name
# that is not among transformers' classes reads tokenizer.json as it stands.
UNSUPPORTED_NAMES = """
    AlbertTokenizer BarthezTokenizer BartphoTokenizer BertGenerationTokenizer BertJapaneseTokenizer
    BertweetTokenizer BigBirdTokenizer BioGptTokenizer BlenderbotSmallTokenizer BlenderbotTokenizer
    ByT5Tokenizer CLIPTokenizer CTRLTokenizer CamembertTokenizer CanineTokenizer ClvpTokenizer
    CodeGenTokenizer CodeLlamaTokenizer CohereTokenizer ConvBertTokenizer CpmAntTokenizer
    CpmTokenizer DPRContextEncoderTokenizer DPRQuestionEncoderTokenizer DPRReaderTokenizer
    DebertaTokenizer DebertaV2Tokenizer DiaTokenizer EsmTokenizer EsmcTokenizer FNetTokenizer
    FSMTTokenizer FastSpeech2ConformerTokenizer FlaubertTokenizer FunnelTokenizer
    GPTNeoXJapaneseTokenizer GPTSw3Tokenizer HerbertTokenizer LasrTokenizer LayoutLMv2Tokenizer
    LayoutLMv3Tokenizer LayoutXLMTokenizer LukeTokenizer M2M100Tokenizer MBart50Tokenizer
    MBartTokenizer MLukeTokenizer MPNetTokenizer MarianTokenizer MarkupLMTokenizer MgpstrTokenizer
    MyT5Tokenizer NllbTokenizer NougatTokenizer OpenAIGPTTokenizer PLBartTokenizer ParakeetTokenizer
    PegasusTokenizer PerceiverTokenizer PhobertTokenizer Pop2PianoTokenizer ProphetNetTokenizer
    RagTokenizer ReformerTokenizer RemBertTokenizer RoCBertTokenizer
    RoFormerTokenizer SeamlessM4TTokenizer Siglip2Tokenizer SiglipTokenizer Speech2TextTokenizer
    SpeechT5Tokenizer SplinterTokenizer T5Tokenizer TapasTokenizer Tipsv2Tokenizer UdopTokenizer
    VideoPrismTokenizer VitsTokenizer Wav2Vec2CTCTokenizer Wav2Vec2PhonemeCTCTokenizer
    WhisperTokenizer XGLMTokenizer XLMTokenizer XLNetTokenizer
"""
UNSUPPORTED = frozenset(UNSUPPORTED_NAMES.split())


def class_of(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return one of BUILT, or PLAIN for reading tokenizer.json as it stands.

    `config` is the folder's config.json, `settings` its tokenizer_config.json. Raises
    CheckpointError for a class that cannot be built.
    """
    name = chosen_class(config, settings)
    if name in BUILT or name == PLAIN:
        return name
    if name in UNSUPPORTED or has_own_code(settings):
        reason = "is not supported" if name in UNSUPPORTED else "comes with the model as code"
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG_FILE}: the tokenizer class {name} {reason}; set "
            f"tokenizer_class to {PLAIN} to read {TOKENIZER_FILE} as it stands"
        )
    return PLAIN


def chosen_class(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the name of the class that AutoTokenizer chooses, of several names the one in BUILT.

    An unknown name is returned as it is.
    """
    registered = CLASS_OF_TYPE.get(str(base_model_type(config)))
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(stated or registered or PLAIN).removesuffix("Fast")
    if registered is not None and not has_own_code(settings) and not heeds_class(config):
        name = registered
    return ALIASES.get(name, name)


def has_own_code(settings: Mapping[str, Any]) -> bool:
    """Say whether the files refer to code of their own, which is never run."""
    code = settings.get("auto_map")
    return bool(code.get("AutoTokenizer") if isinstance(code, Mapping) else code)


def base_model_type(config: Mapping[str, Any]) -> Any:
    """Return the model type of a stock config, or that of the base of a converted one."""
    block = config.get("sgate")
    own = block.get("base_model_type") if isinstance(block, Mapping) else None
    return own or config.get("model_type")


def heeds_class(config: Mapping[str, Any]) -> bool:
    """Say whether the stated class counts, or transformers goes by the model type alone."""
    model_type = base_model_type(config)
    return CLASS_OF_TYPE.get(str(model_type)) != PLAIN and model_type not in OVERRULES
