"""Rendered conversations are those of transformers' apply_chat_template, token by token."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sgate_serve.errors import CheckpointError, RequestError
from sgate_serve.text.chat_template import ChatOptions, ChatTemplate
from sgate_serve.text.tokenization import TextCodec
from tests.text.small_tokenizers import gemma, llama, qwen2

transformers = pytest.importorskip("transformers")

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTOOLS' + (tools | tojson) }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and message.content is string %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + (':' + message.name if message.name else '') }}
        {{- '\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' ~ ns.last }}{%- endif %}
"""
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system = false %}{% endif %}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}{% if loop.index0 == 0 and system != false %}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}
{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}
{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}
"""
GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {{ '<start_of_turn>' + message['role'] + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}
"""
MACRO = """\
{% macro visible(value, mark='-') %}{% if value is string %}{{ value }}{% else %}
{% for item in value %}{{ mark }}{{ item.text }}{% endfor %}{% endif %}{% endmacro %}
{% set ns = namespace(n=0) %}{% for m in messages %}
{% set body = m.get('content') or [] %}
{% generation %}{% set ns.n = ns.n + 1 %}{{ visible(body, mark='+') }}{% endgeneration %}
{% endfor %}{{ ns.n }}
"""
EVERYTHING = """\
{{ tools is none }}{{ documents == none }}{{ add_generation_prompt }}{{ missing }}{{ image_token }}
{{ unk_token }}{{ pad_token is defined }}{{ messages | tojson(indent=2) }}{{ '<é&' | tojson }}
{{ messages[0] | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}
{{ strftime_now('%Y') | length }}{{ messages[0].content[0] }}{{ messages[0].content[1:] }}
"""
TEMPLATES = {
    "chatml": (qwen2, "qwen2", CHATML, False),
    "llama2": (llama, "llama", LLAMA2, False),
    "gemma3": (gemma, "gemma3_text", GEMMA3, True),
    "macro": (qwen2, "qwen3", MACRO, True),
    "everything": (llama, "llama", EVERYTHING, False),
}
TEXT = st.text("ab é<>&'\"\n座🚀", max_size=8) | st.sampled_from(["</think>", "<|im_end|>", "<s>"])
PART = st.builds(lambda text: {"type": "text", "text": text}, TEXT)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant"]),
        "content": TEXT | st.lists(PART, max_size=3),
    },
    optional={"name": TEXT},
)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}]


@cache
def readers(kind: str, folder: Path) -> tuple[TextCodec, Any]:
    make, model_type, template, _ = TEMPLATES[kind]
    folder = folder / kind
    folder.mkdir()
    make().save(str(folder / "tokenizer.json"))
    own: dict[str, Any] = {"extra_special_tokens": {"image_token": "<img>"}}
    if model_type == "llama":  # which has no class of its own
        own["tokenizer_class"] = "LlamaTokenizer"
    for name, value in (("config", {"model_type": model_type}), ("tokenizer_config", own)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    codec = TextCodec.load(folder)
    assert codec is not None
    return codec, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


def joined(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its parts as one text, for templates that know no parts."""
    if isinstance(message["content"], str):
        return message
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


# As transformers spells them; a message is continued in place of a new one.
OPTIONS = (
    ChatOptions(),
    ChatOptions(add_generation_prompt=False),
    ChatOptions(add_generation_prompt=False, continue_final_message=True),
    ChatOptions(chat_template_kwargs={"missing": "given", "bos_token": "<other>"}),
)


def encode_chat(
    codec: TextCodec, messages: list[dict[str, Any]], options: ChatOptions = OPTIONS[0]
) -> tuple[int, ...]:
    return codec.encode(codec.render_chat(messages, options), add_special_tokens=False)


@pytest.mark.parametrize("kind", TEMPLATES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), options=st.sampled_from(OPTIONS))
@example(messages=[{"role": "system", "content": "s"}, *TURNS], options=OPTIONS[0])
@example(messages=TURNS, options=OPTIONS[0])
@example(messages=[*TURNS, {"role": "assistant", "content": "so \n"}], options=OPTIONS[2])
@example(messages=TURNS, options=OPTIONS[3])
def test_conversations_have_transformers_tokens(
    kind: str, folder: Path, messages: list[dict[str, Any]], options: ChatOptions
) -> None:
    codec, theirs = readers(kind, folder)
    reads_parts = TEMPLATES[kind][3]
    assert codec.chat_template is not None
    assert codec.chat_template.reads_parts is reads_parts
    given = messages if reads_parts else list(map(joined, messages))
    plain = {**vars(options), **options.chat_template_kwargs}
    del plain["chat_template_kwargs"]
    try:
        expected = theirs.apply_chat_template(given, **plain, return_dict=False)
    except Exception:  # of the template
        assert messages != TURNS or options.continue_final_message
        with pytest.raises(RequestError, match=r"chat template (refused|does not show)"):
            encode_chat(codec, messages, options)
        return
    assert list(encode_chat(codec, messages, options)) == expected


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}", True),
        ("{% for c in messages[0]['content'] | list %}{% endfor %}", True),
        ("{% for c in messages[0].get('content') %}{% endfor %}", True),
        ("{% set c = messages[0].content %}{% for p in c[1:] %}{% endfor %}", True),
        ("{% set c = [] if not x else messages[0].content %}{% for p in c %}{% endfor %}", True),
        ("{% set c = m.content %}{% set d = c %}{% for p in d or [] %}{% endfor %}", True),
        ("{{ messages[0].content[0].text }}", True),
        ("{{ messages[0]['content'][0]['type'] }}", True),
        ("{{ messages[0].content[0] }}{{ messages[0].content[:5] }}", False),
        ("{% for line in messages[0].content.split('\n') %}{% endfor %}", False),
        ("{% for t in messages[0].tool_calls %}{{ t.content }}{% endfor %}", False),
    ],
)
def test_templates_that_read_parts_are_told_apart(
    tmp_path: Path, template: str, reads: bool
) -> None:
    loaded = ChatTemplate.load(tmp_path, {"chat_template": template}, {})
    assert loaded is not None
    assert loaded.reads_parts is reads


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{% break %}", "'break' outside loop"),
        ("".join(f"{{% for a{n} in [1] %}}" for n in range(21)) + "{% endfor %}" * 21, "nested"),
        ("{{ (10 ** 5000) | string }}", "4300 digits"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{% generation %}", "endgeneration"),
    ],
)
def test_template_that_python_cannot_compile_is_refused_at_load(
    tmp_path: Path, source: str, found: str
) -> None:
    message = f"chat template is not a valid Jinja template .*{found}"
    with pytest.raises(CheckpointError, match=message) as refusal:
        ChatTemplate.load(tmp_path, {"chat_template": source}, {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{{ 'a'.center(10 ** 15 + messages | length) }}", "MemoryError"),
        ("{{ messages.frobnicate() }}", "no attribute 'frobnicate'"),
        ("{{ raise_exception('one\ntwo') }}", "one two"),
    ],
)
def test_template_that_fails_on_a_conversation_refuses_it(
    tmp_path: Path, source: str, found: str
) -> None:
    template = ChatTemplate.load(tmp_path, {"chat_template": source}, {})
    assert template is not None
    with pytest.raises(RequestError, match=f"template refused the messages: .*{found}"):
        template.render(TURNS)


def test_files_win_over_the_config_and_only_the_default_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The precedence of transformers, which its tokenizer states as `chat_template`."""
    llama().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    further = tmp_path / "additional_chat_templates"
    settings_file = tmp_path / "tokenizer_config.json"
    listed = [{"name": "default", "template": "listed"}, {"name": "rag", "template": "no"}]

    def rendered() -> Any:
        codec = TextCodec.load(tmp_path)
        template = None if codec is None else codec.chat_template
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
                TURNS, tokenize=False
            )
        except ValueError:  # no template, or none that is the default
            theirs = None
        assert theirs == (None if template is None else template.render(TURNS))
        return theirs

    assert rendered() is None
    for stated, expected in (
        ("plain", "plain"),
        (listed, "listed"),
        ({"default": "object", "rag": "no"}, "object"),
        (listed[1:], None),
    ):
        settings_file.write_text(json.dumps({"chat_template": stated}), encoding="utf-8")
        assert rendered() == expected
    assert "has the chat templates rag, but none named default" in caplog.text
    further.mkdir()
    (further / "rag.jinja").write_text("no", encoding="utf-8")
    settings_file.write_text('{"chat_template": "plain"}', encoding="utf-8")
    assert rendered() is None
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert rendered() == "file"
