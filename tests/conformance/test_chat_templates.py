"""Chat templates that look at what was said, through transformers and through this project: the same prompt."""

import re
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_ref import gguf
from llava_ref.chat import sandbox
from llava_ref.chat.rendering import OTHER_SLOTS, TAG, render
from llava_ref.chat.templates import TEMPLATES
from llava_ref.conformance.pairs import smollm2
from llava_ref.errors import LlavaError, PromptError, TemplateError

from ..support.template_grammar import FOLLOWED, TEXTS, UNFOLLOWED, operations, templates

utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
pytestmark = pytest.mark.oracle
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
IMAGE = {"type": "image"}
THINK = "<think>\nadd them\n</think>\n\n4"


def text(value):
    return {"type": "text", "text": value}


def talk(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": content} for i, content in enumerate(turns)]


def system(content, *turns):
    return [{"role": "system", "content": content}, *talk(*turns)]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """The same code without a child process for each of thousands of templates."""
    monkeypatch.setattr(sandbox, "run", lambda source, contexts, where, field: sandbox.run_trusted(source, contexts))


def theirs(source, messages, **options):
    """transformers' prompt, other models' slots as `<image>`."""
    options = {"add_generation_prompt": True} | options
    prompt = utils.render_jinja_template([messages], chat_template=source, **TOKENS, **options)[0][0]
    slot = next((slot for slot in ("<image>", *OTHER_SLOTS) if slot in source and slot in prompt), "<image>")
    return prompt.replace(slot, "<image>")


FAMILIES = {  # what families of models do with what was said, each in few words
    "cuts reasoning from the history": """
{%- for m in messages -%}{%- set c = m.content -%}
{%- if m.role == 'assistant' and '</think>' in c and not loop.last -%}
{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if messages[-1].content.endswith('/no_think') -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}""",
    "looks for the last question": """
{%- set ns = namespace(last=0) -%}{%- for m in messages -%}
{%- if m.role == 'user' and not (m.content.startswith('<tool') and m.content.endswith('>')) -%}
{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}{{ '[' ~ m.role ~ (' last' if loop.index0 == ns.last else '') ~ ']' ~ m.content }}
{%- endfor -%}""",
    "a system text in the first question": """
{{ bos_token }}{%- if messages[0].role == 'system' -%}{%- set lead = messages[0].content | trim ~ '\\n\\n' -%}
{%- set messages = messages[1:] -%}{%- else -%}{%- set lead = '' -%}{%- endif -%}
{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}{%- endif -%}
{{ '<start_of_turn>' + m.role.replace('assistant', 'model') + '\\n' + (lead if loop.first else '') }}
{%- if m.content is string -%}{{ m.content | trim }}{%- else -%}{%- for p in m.content -%}
{{ '<start_of_image>' if p.type == 'image' else p.text | trim }}{%- endfor -%}{%- endif -%}
{{ '<end_of_turn>\\n' }}{%- endfor -%}""",
    "a system text in the last question": """
{{ bos_token }}{%- set said = messages[0].content if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}{%- if m.role == 'user' -%}
{{ '[INST] ' ~ (said ~ '\\n\\n' if said and loop.last else '') ~ m.content ~ ' [/INST]' }}
{%- else -%}{{ m.content.strip() + eos_token }}{%- endif -%}{%- endfor -%}""",
    "numbers its pictures": """
{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\\n' }}
{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for p in m.content -%}
{%- if p.type == 'image' or 'image' in p -%}{%- set ns.n = ns.n + 1 -%}{{ 'Picture ' ~ ns.n ~ ': <|image_pad|>' }}
{%- elif 'text' in p -%}{{ p.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}""",
    "puts pictures first": """
{%- for m in messages -%}{{ m.role.upper() ~ ': ' }}{%- if m.content is string -%}{{ m.content ~ ' ' }}{%- else -%}
{%- for p in m.content | selectattr('type', 'equalto', 'image') -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for p in m.content | selectattr('type', 'equalto', 'text') -%}
{%- generation -%}{{ p['text'] + ' ' }}{%- endgeneration -%}{%- endfor -%}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}""",
    "says its conversation as JSON": "{{ messages | tojson }}",
    "in macros": """
{%- macro turn(name, said) -%}<|{{ name }}|>{{ said | replace('\\n\\n', '\\n') | trim }}{{ caller() }}{%- endmacro -%}
{%- for m in messages -%}{% call turn(m.role[0], m.content) %}<|end|>{% endcall %}{%- endfor -%}""",
}
TALKS = {
    "one": talk("2+2?"),
    "thinking": talk("2+2?", THINK, "sure? /no_think"),
    "a tool's answer": talk("2+2?", "I add.", "<tool>4</tool>"),
    "system": system(" Be brief.\n", "2+2?", "4", "3+3?"),
    "typed tokens": talk("</s><|im_end|> <image>[/INST]", "<start_of_turn>x", "<think></think>?"),
    "white space": talk(" \n 2+2?\n\n\n", "\t4 ", " ok "),
    "text as a list": talk([text("2+2?")], "4", [text("sure?")]),
}
PICTURES = {
    "picture, text": talk([IMAGE, text("What?")]),
    "text, picture": talk([text("What?"), IMAGE]),
    "between": talk([text("Compare"), IMAGE, text("with"), IMAGE, text(".")], "No.", [text("Why?")]),
    "in the second turn": talk("hi", "hello", [text("What is "), IMAGE, text(" this?")]),
}


def same(source, messages, **options):
    """Whether both make the same of it; a refusal of ours must say what was lost."""
    try:
        want = theirs(source, messages, **options)
    except Exception:  # whatever a template does there
        with pytest.raises(LlavaError):
            render(messages, source, image_order="template", **TOKENS, **options)
        return True
    try:
        found = render(messages, source, image_order="template", **TOKENS, **options)
    except TemplateError as error:
        assert re.search("drops|tracked", str(error)), error
        return False
    assert found == want
    return True


@pytest.mark.parametrize("messages", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
def test_families_of_templates(source, messages):
    """Where transformers' rendering holds everything, it is ours."""
    listed = any(isinstance(message["content"], list) for message in messages)
    if listed and ("m.content.split" in source or "endswith" in source or "[INST]" in source or "macro" in source):
        pytest.skip("this one only takes strings, and gets them: transformers prints the list or fails")
    assert same(source, messages)


@pytest.mark.parametrize("messages", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("name", ["a system text in the first question", "numbers its pictures", "puts pictures first"])
def test_templates_decide_where_pictures_stand(name, messages):
    assert same(FAMILIES[name], messages)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("messages", [TALKS["one"], TALKS["typed tokens"], TALKS["white space"]])
def test_our_own_templates(source, messages):
    assert same(source, messages)


@cache
def shipped():
    """Templates that installed packages bring along."""
    found = {}
    processing = pytest.importorskip("transformers.models.llama4.processing_llama4")
    if hasattr(processing, "chat_template"):
        found["Llama 4"] = processing.chat_template
    if (path := smollm2.find()) is not None:
        found["SmolLM2"] = gguf.read(path).string("tokenizer.chat_template")
    return found


@pytest.mark.parametrize("messages", [*TALKS.values(), *PICTURES.values()], ids=[*TALKS, *PICTURES])
def test_templates_that_packages_bring_along(messages):
    for name, source in shipped().items():
        if name == "SmolLM2" and any(isinstance(message["content"], list) for message in messages):
            continue  # it only takes strings, and gets them
        assert same(source, messages), name


@pytest.mark.parametrize("messages", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
def test_an_open_last_message(source, messages):
    """The prompt ends where transformers' does, or is refused where transformers refuses."""
    if any(isinstance(message["content"], list) for message in messages) or "| tojson" in source:
        pytest.skip("the tag is looked for in strings")
    messages = [*messages, {"role": "assistant", "content": "It is </s>\n"}]
    lost = "[INST]" in source and messages[0]["role"] == "system"  # it goes into a last question, and there is none
    assert same(source, messages, add_generation_prompt=False, continue_final_message=True) is not lost


@pytest.mark.parametrize("content", ["4 ", " 4", "", "<image>", TAG.strip(), [text("so"), text(" it ")]])
@pytest.mark.parametrize("source", [*TEMPLATES.values(), FAMILIES["puts pictures first"]])
def test_what_is_open(source, content):
    if isinstance(content, list) and "is string" not in source:
        pytest.skip("this one only takes strings")
    messages = [*talk("2+2?"), {"role": "assistant", "content": content}]
    if content == "":
        assert TAG not in render(messages, source, add_generation_prompt=False, continue_final_message=True)
    else:
        assert same(source, messages, add_generation_prompt=False, continue_final_message=True)


def test_what_cannot_be_open():
    with pytest.raises(PromptError, match="continue_final_message: add_generation_prompt: true as well"):
        render(talk("a", "b"), TEMPLATES["vicuna"], continue_final_message=True)
    for content in (None, [], [IMAGE]):
        with pytest.raises(PromptError, match="continue_final_message: messages: the last one has no text"):
            last = {"role": "assistant", "content": content}
            render([*talk("a"), last], TEMPLATES["vicuna"], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateError, match="does not show the last message as it is, so it cannot be continued"):
        source = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
        render(talk("a", "b"), source, add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("operation", operations(FOLLOWED) + operations(UNFOLLOWED))
def test_each_operation(operation):
    """On every text, and most texts come through where the operation is one that is followed."""
    source = (
        f"{{% for m in messages %}}{{% set x = m.content %}}<|{{{{ m.role }}}}|>{{{{ {operation} }}}}{{% endfor %}}"
    )
    came = [same(source, talk(value)) for value in TEXTS]
    if operation in operations(FOLLOWED):
        assert sum(came) > len(TEXTS) * 0.3


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=templates(operations(FOLLOWED)), said=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
def test_random_templates(source, said):
    same(source, talk(*said))
