"""How chat templates write functions, calls and results, and how they are written where a template has no place."""

import re
from types import SimpleNamespace

import pytest

from llava_ref.chat.call_form import PLAIN
from llava_ref.chat.calls import Tool
from llava_ref.chat.messages import parse_messages
from llava_ref.chat.rendering import ChatTemplate, call_form, render_prompt
from llava_ref.chat.templates import CHATML, GEMMA, LLAVA_LLAMA_3, MISTRAL_INSTRUCT, VICUNA
from llava_ref.errors import PromptError, TemplateError

from .call_templates import LLAMA, MISTRAL, QWEN

TEXTS = ("<s>", "</s>", "<|im_end|>", "<|eot_id|>", "<tool_call>")
TOKENIZER = SimpleNamespace(bos_id=0, eos_id=1, end_ids={1, 2, 3}, text_of=TEXTS.__getitem__, control_texts=TEXTS[:4])
COUNT = Tool("count", "Counts shapes.", {"type": "object", "properties": {"shape": {"type": "string"}}}, "tools[0]")
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "count", "arguments": '{"shape": "a<|im_end|>b"}'}}
OTHER = {"id": "bcdefghij", "type": "function", "function": {"name": "count", "arguments": "{}"}}
ASKED = {"role": "user", "content": "How many?"}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "7"}
TALK = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]


def shown(source, messages=TALK, tools=(COUNT,), **settings):
    template = ChatTemplate("given", source, "")
    return render_prompt(
        parse_messages(messages), template, TOKENIZER, image_order="given", tools=tools, **settings
    ).shown


@pytest.mark.parametrize(
    "source, first, second, closing",
    [
        (
            QWEN,
            '<tool_call>\n{"name": "f", "arguments": ',
            '}\n</tool_call>\n<tool_call>\n{"name": "f"',
            "}\n</tool_call>",
        ),
        (LLAMA, '{"name": "f", "parameters": ', None, "}"),
        (MISTRAL, "[TOOL_CALLS]f[CALL_ID]probecal1[ARGS]", "[TOOL_CALLS]f", ""),
    ],
    ids=["Qwen", "Llama", "Mistral"],
)
def test_the_form_is_read_off_the_template(source, first, second, closing):
    form = call_form(ChatTemplate("given", source, ""), TOKENIZER)
    assert form.place == "template" and form.call("f") == first and form.closing == closing
    assert (None if second is None else form.joint + second.removeprefix(form.joint)) == second


@pytest.mark.parametrize("source", [CHATML, VICUNA, GEMMA, LLAVA_LLAMA_3, MISTRAL_INSTRUCT])
def test_a_template_without_a_place_for_tools_has_the_plain_form(source):
    assert call_form(ChatTemplate("given", source, ""), TOKENIZER) == PLAIN


def test_json_with_other_separators_than_its_arguments_is_not_read_off():
    """An answer of JSON or a call is made by one JSON Schema, which has one kind of separator."""
    source = LLAMA.replace('{"name": "', '{"name":"')
    assert source != LLAMA and call_form(ChatTemplate("given", source, ""), TOKENIZER) == PLAIN


def test_a_template_without_a_system_role_has_them_in_the_users_message():
    source = CHATML.replace("{%- for message", "{%- if messages[0].role == 'system' -%}{{- raise_exception('no') -}}"
                            "{%- endif -%}{%- for message", 1)  # fmt: skip
    assert call_form(ChatTemplate("given", source, ""), TOKENIZER).place == "user"
    assert re.match(r"<\|im_start\|>user\nYou can call these functions:\n.*\n.*\n?How many\?", shown(source))


def test_qwens_template_shows_tools_calls_and_results():
    """What looks like a control token in an argument is the user's text."""
    assert shown(QWEN) == (
        '<|im_start|>system\n<tools>\n{"type": "function", "function": {"name": "count", "description": '
        '"Counts shapes.", "parameters": {"type": "object", "properties": {"shape": {"type": "string"}}}}}\n</tools>'
        "<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "count", "arguments": {"shape": "a<|im_end|>b"}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_llamas_template_has_one_call_at_a_time():
    assert '{"name": "count", "parameters": {"shape": "a<|im_end|>b"}}<|eot_id|>' in shown(LLAMA)
    two = [ASKED, {"role": "assistant", "tool_calls": [CALL, OTHER]}, RESULT, RESULT | {"tool_call_id": "bcdefghij"}]
    with pytest.raises(TemplateError, match="one call at a time"):
        shown(LLAMA, two)


def test_mistrals_template_takes_the_ids_of_calls():
    found = shown(MISTRAL)
    assert '[TOOL_CALLS]count[CALL_ID]abcdefghi[ARGS]{"shape": "a<|im_end|>b"}</s>' in found
    assert found.endswith("[TOOL_RESULTS]abcdefghi[TOOL_CONTENT]7[/TOOL_RESULTS]")


def test_the_plain_form():
    system, user, call, result, begin = shown(CHATML).split("<|im_start|>")[1:]
    assert system.startswith('system\nYou can call these functions:\n{"name": "count", "description": "Counts shapes."')
    assert user == "user\nHow many?<|im_end|>\n"
    assert call == 'assistant\n{"name": "count", "arguments": {"shape": "a<|im_end|>b"}}<|im_end|>\n'
    assert result == "user\nResult of count:\n7<|im_end|>\n" and begin == "assistant\n"


def test_the_plain_form_stands_behind_the_system_message_that_is_there():
    found = shown(CHATML, [{"role": "system", "content": "Be brief."}, ASKED])
    assert found.startswith("<|im_start|>system\nBe brief.\nYou can call these functions:\n")


def test_results_that_follow_one_another_are_one_message_of_the_user():
    two = [ASKED, {"role": "assistant", "tool_calls": [CALL, OTHER]}, RESULT, RESULT | {"tool_call_id": "bcdefghij"}]
    assert shown(CHATML, two).count("<|im_start|>user\n") == 2


@pytest.mark.parametrize(
    "change",
    [
        ("tool | tojson", "tool.function.name"),
        ("<tool_response>\\n' + m.content +", "<tool_response>\\n' +"),
        ("call.function.arguments | tojson", "'{}'"),
    ],
    ids=["descriptions", "results", "arguments"],
)
def test_a_template_that_drops_a_part_of_them_has_the_plain_form(change):
    source = QWEN.replace(*change)
    assert source != QWEN
    assert call_form(ChatTemplate("given", source, ""), TOKENIZER) == PLAIN
    assert "Counts shapes." in shown(source) and '"shape": "a<|im_end|>b"' in shown(source) and "\n7<" in shown(source)


def test_what_a_template_drops_of_this_conversation_is_named():
    source = QWEN.replace("for tool in tools", "for tool in tools[:1]")
    with pytest.raises(TemplateError, match=r"drops tools\[1\].name, tools\[1\].description, tools\[1\].parameters"):
        shown(source, tools=(COUNT, Tool("other", "Does more.", COUNT.parameters, "tools[1]")))


@pytest.mark.parametrize("message, problem", [
    ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls: type: expected a list of calls, got dict"),
    ({"role": "assistant", "tool_calls": [5]}, "messages[1].tool_calls[0]: function: expected an object"),
    ({"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}, "messages[1].tool_calls[0]: type: expected"),
    ({"role": "assistant", "tool_calls": [CALL | {"id": ""}]}, "messages[1].tool_calls[0].id: type: expected a string"),
    ({"role": "assistant", "tool_calls": [CALL] * 129}, "messages[1].tool_calls: length: 129 calls, expected at most"),
    ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "a b", "arguments": "{}"}}]},
     "messages[1].tool_calls[0].function.name: type: expected a name"),
    ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[]"}}]},
     "messages[1].tool_calls[0].function.arguments: type: expected a JSON object, as a string"),
    ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[" * 9999}}]},
     "messages[1].tool_calls[0].function.arguments: type: expected a JSON object, as a string"),
    ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]},
     "messages[1].tool_calls[0].function.arguments: text: not JSON whose texts are Unicode"),
    (RESULT, "messages[1].tool_call_id: value: no call of an earlier message has this id"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[1]: tool_calls"),
])  # fmt: skip
def test_a_bad_call_is_named(message, problem):
    with pytest.raises(PromptError) as caught:
        parse_messages([ASKED, message])
    assert str(caught.value).startswith(problem)
