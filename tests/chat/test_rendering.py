"""Test prompts: golden strings of the named templates, templates of many kinds, and that no text or picture is lost."""

import base64
from dataclasses import dataclass

import pytest

from llava_ref.chat import sandbox
from llava_ref.chat.messages import ImagePart, Message, TextPart
from llava_ref.chat.rendering import ChatTemplate, parse_messages, render, render_prompt
from llava_ref.chat.templates import CHATML, KEY, LLAVA_LLAMA_3, MISTRAL_INSTRUCT, TEMPLATES, VICUNA
from llava_ref.errors import PromptError, TemplateError

IMAGE = {"type": "image"}
S, U, A = "system", "user", "assistant"


def text(value):
    return {"type": "text", "text": value}


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


ONE = talk((U, [IMAGE, text("What is this?")]))
MORE = talk((U, [IMAGE, text("What is this?")]), (A, "A cat."), (U, "Sure?"))
SYSTEM = talk((S, "Be brief."), *((m["role"], m["content"]) for m in ONE))
LAST = talk((U, [text("Look:"), IMAGE]))
MIDDLE = talk((U, [text("Compare"), IMAGE, text("with"), IMAGE, text("please.")]))
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
LU, LA, LS = (HEAD.format(role) for role in (U, A, S))

GOLDEN = [
    # LLaVA-1.5 (haotian-liu/LLaVA, conv vicuna_v1): huggingface/transformers pull request 30130
    (VICUNA, ONE, "USER: <image>\nWhat is this? ASSISTANT:"),
    (VICUNA, MORE, "USER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"),
    (VICUNA, SYSTEM, "Be brief. USER: <image>\nWhat is this? ASSISTANT:"),
    (VICUNA, LAST, "USER: <image>\nLook: ASSISTANT:"),
    (VICUNA, MIDDLE, "USER: <image>\n<image>\nCompare\nwith\nplease. ASSISTANT:"),
    (MISTRAL_INSTRUCT, ONE, "[INST] <image>\nWhat is this? [/INST]"),
    (MISTRAL_INSTRUCT, MORE, "[INST] <image>\nWhat is this? [/INST] A cat.</s>[INST] Sure? [/INST]"),
    (MISTRAL_INSTRUCT, SYSTEM, "[INST] Be brief.\n\n<image>\nWhat is this? [/INST]"),
    (MISTRAL_INSTRUCT, LAST, "[INST] <image>\nLook: [/INST]"),
    (LLAVA_LLAMA_3, ONE, f"{LU}<image>\nWhat is this?<|eot_id|>{LA}"),
    (LLAVA_LLAMA_3, MORE, f"{LU}<image>\nWhat is this?<|eot_id|>{LA}A cat.<|eot_id|>{LU}Sure?<|eot_id|>{LA}"),
    (LLAVA_LLAMA_3, SYSTEM, f"{LS}Be brief.<|eot_id|>{LU}<image>\nWhat is this?<|eot_id|>{LA}"),
    (CHATML, ONE, "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"),
    (CHATML, MORE, "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
                   "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
    (CHATML, SYSTEM, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n"
                     "<|im_start|>assistant\n"),
]  # fmt: skip

LISTS = """{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'image' %}<image>
{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
IMAGES_FIRST = """{% for m in messages %}{{ m.role | upper }}: \
{% for p in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for p in m.content | selectattr('type', 'equalto', 'text') %}{% generation %}{{ p.text + ' ' }}{% endgeneration %}
{% endfor %}{% endfor %}ASSISTANT:"""
BOTH = """{% for m in messages %}({% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}\
{% if p['type'] == 'image' %}SLOT{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}){% endfor %}"""
PLAIN = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
SYSTEM_AS_TEXT = """{% if messages[0].role == 'system' %}{{ '<<' ~ messages[0].content ~ '>>' }}{% endif %}
{% for m in messages %}{% if m.role == 'user' %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}
{% endif %}{% endfor %}"""


@pytest.mark.parametrize("source, messages, want", GOLDEN)
def test_golden_prompts(source, messages, want):
    assert render(messages, source) == want


def test_prompts_without_the_words_that_start_an_answer():
    assert render(ONE, VICUNA, add_generation_prompt=False) == "USER: <image>\nWhat is this? "
    assert render(ONE, CHATML, add_generation_prompt=False).endswith("<|im_end|>\n")


@pytest.mark.parametrize(
    "source, messages, want",
    [
        (LISTS, MORE, "[user]<image>\nWhat is this?[assistant]A cat.[user]Sure?[assistant]"),
        (LISTS, MIDDLE, "[user]Compare<image>\nwith<image>\nplease.[assistant]"),
        (LISTS, talk((U, "hi")), "[user]hi[assistant]"),
        (IMAGES_FIRST, MORE, "USER: <image>\nWhat is this? ASSISTANT: A cat. USER: Sure? ASSISTANT:"),
        (IMAGES_FIRST, talk((U, [IMAGE, IMAGE, text("a"), text("b")])), "USER: <image>\n<image>\na b ASSISTANT:"),
        (IMAGES_FIRST, talk((U, [IMAGE, text("a"), text("b")]), (A, "c")),
         "USER: <image>\na b ASSISTANT: c ASSISTANT:"),
        (IMAGES_FIRST, LAST, "USER: Look:<image> ASSISTANT:"),  # with a list the template would move the picture
        (IMAGES_FIRST, MIDDLE, "USER: Compare<image>with<image>please. ASSISTANT:"),
        (PLAIN, MORE, "user=<image>What is this?;assistant=A cat.;user=Sure?;"),
        (PLAIN, talk((U, [text("a"), text("b")])), "user=a\nb;"),
        ("[IMG]" + PLAIN, ONE, "[IMG]user=<image>What is this?;"),  # not a slot beside <image>
        (SYSTEM_AS_TEXT, SYSTEM, "<<Be brief.>><image>What is this?"),
    ],
)  # fmt: skip
def test_templates_that_want_strings_or_lists(source, messages, want):
    assert render(messages, source, image_order="given") == want


@pytest.mark.parametrize(
    "slot", ["<image>", "<|image|>", "<start_of_image>", "[IMG]", "<|image_pad|>", "<IMG_CONTEXT>", "<__media__>"]
)
def test_other_models_image_tokens_are_slots(slot):
    messages = talk((U, [text(" a "), IMAGE, text(" b ")]), (A, " c "))
    assert render(messages, BOTH.replace("SLOT", slot), image_order="template") == "(a<image>b)( c )"


@pytest.mark.parametrize(
    "source, messages, problem",
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", MORE,
         "drops messages[0].content[1].text, messages[1].content, messages[2].content"),
        ("{{ messages[-1].content }}", MORE, "drops messages[0].content[1].text, messages[1].content"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", SYSTEM,
         "drops messages[0].content"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", ONE, "makes 2 slots for 1 pictures"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}<image><image>", ONE,
         "makes 2 slots for 1 pictures"),
        ("<image>{{ messages[0].content }}", talk((U, "a")), "makes 1 slots for 0 pictures"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", talk((U, "a"), (A, "b"), (U, "c")),
         "changes the order of the parts"),
        ("{{ 'abc' }}", talk((U, "abc")), "drops messages[0].content"),
        ("{{ messages[0].content[0] }}", talk((U, [text("a"), text("b")])), "drops messages[0].content[1].text"),
        ("{{ messages[0].content[:1] }}", talk((U, " abc")), "drops messages[0].content"),
        ("{{ messages }}", talk((U, "a")), "drops messages[0].content"),
        ("{{ raise_exception('no\x1bsystem\n') }}{{ messages[0].content }}", SYSTEM,
         "refuses this conversation: no\\x1bsystem\\n"),
        ("{{ messages[0].content.x.y }}", talk((U, "a")), "line 1: a text has no 'x'"),
        ("{% if %}", talk((U, "a")), "line 1: cannot be read: "),
    ],
)  # fmt: skip
def test_an_error_names_what_a_template_loses(source, messages, problem):
    with pytest.raises(TemplateError) as caught:
        render(messages, source)
    assert str(caught.value).startswith(f"chat template: {KEY}: {problem}")


def test_white_space_around_a_text_may_be_stripped():
    trim = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    assert render(talk((U, " \n a  b\t\x1c"), (A, " ")), trim) == "<a  b><>"
    assert render(talk((U, " a "), (A, ""), (U, "\n")), PLAIN) == "user= a ;assistant=;user=\n;"


def test_typed_text_is_neither_code_nor_a_slot():
    typed = "{{ 7 * 7 }}{% raw %}<image></s>[IMG]<|im_end|>\x020\x03"
    messages = talk((U, [text(typed), IMAGE]))
    assert render(messages, VICUNA) == f"USER: <image>\n{typed} ASSISTANT:"
    assert render(messages, VICUNA, image_order="given") == f"USER: {typed}<image> ASSISTANT:"
    assert render(messages, LISTS, image_order="given") == f"[user]{typed}<image>\n[assistant]"
    other = LISTS.replace("<image>", "[IMG]")
    assert render(talk((U, [text("[IMG]"), IMAGE])), other) == "[user]<image>\n[IMG][assistant]"


def test_text_of_unknown_origin_makes_no_token_and_no_slot():
    """Check a printed list, of unknown origin: it may be shown, but make no token or slot, nor stand for a text."""
    source = "{{ messages[0].content }}{{ [messages[0].content] | string }}"
    assert render(talk((U, "a </s>")), source) == "a </s>['a </s>']"
    with pytest.raises(TemplateError, match="makes '<image>' from text whose origin cannot be tracked"):
        render(talk((U, "a <image>")), source)
    with pytest.raises(TemplateError, match="makes '</s>' from text whose origin cannot be tracked"):
        messages = [Message("user", (TextPart("a </s>"),))]
        render_prompt(messages, ChatTemplate("file", source, ""), Words(), image_order="first")
    with pytest.raises(
        TemplateError, match=r"drops messages\[0\].content, or changes it in a way that cannot be tracked"
    ):
        render(talk((U, "a")), "{{ [messages[0].content] }}")


def test_a_list_that_no_user_wrote_is_not_printed():
    """Check a text that transformers would drop: given as a list it would come through, printed as a list."""
    with pytest.raises(TemplateError, match="drops messages"):
        render(talk((U, "abc")), "{{ messages[0].content[0] | tojson if messages[0].content is not string }}")
    assert render(talk((U, [text("abc"), text("d")])), "{{ messages | tojson }}").count('"type": "text"') == 2


def test_a_list_of_one_text_is_given_as_a_list():
    source = (
        "{% for m in messages %}{{ m.content if m.content is string else 'list: ' ~ m.content[0].text }};{% endfor %}"
    )
    assert render(talk((U, "a"), (A, [text("b")])), source) == "a;list: b;"


def test_private_use_characters_of_templates_and_texts_are_kept():
    """Check that quoting, which needs such characters, takes none of a template or a text."""
    private = "".join(chr(c) for c in range(0xE000, 0xE100))
    assert render(talk((U, "<" + private)), private + "{{ messages[0].content }}") == f"{private}<{private}"
    assert render(talk((U, "<")), "{{ '\\ue000' ~ messages[0].content }}") == "\ue000<"


def test_a_long_conversation_is_given_as_a_list_first():
    long = "It's <b>1</b>.\n" * 50_000  # LISTS would loop over the half million letters of a string
    assert render(talk((U, long), (A, long)), LISTS) == f"[user]{long.strip()}\n[assistant]{long.strip()}\n[assistant]"


def test_the_context_is_that_of_hugging_face():
    source = "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ messages[0].content }}"
    assert render(talk((U, "x")), source, bos_token="<s>", eos_token="</s>") == "<s></s>TrueTruex"
    assert render(talk(("developer", "x")), "{{ messages[0].role }}{{ messages[0].content }}") == "systemx"


def test_render_takes_messages_of_both_kinds():
    assert render([Message("user", (ImagePart(b"x"), TextPart("a")))], VICUNA) == "USER: <image>\na ASSISTANT:"
    with pytest.raises(PromptError, match=r"messages\[0\]: role"):
        render([{"role": "robot"}], VICUNA)


def test_our_own_templates_need_no_process_and_others_get_one(monkeypatch):
    calls = []
    run = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda *args: calls.append(args) or run(*args))
    for source in TEMPLATES.values():
        render(ONE, source)
    assert calls == []
    render(SYSTEM, VICUNA + " ")
    render(MORE, LISTS)
    render(talk((U, "hi")), LISTS)
    assert [len(contexts) for _, contexts, *_ in calls] == [4, 4, 2]  # one process for all forms, and no form twice


@pytest.mark.parametrize("source", ["{{ 7 ** (10 ** 9) }}", "{{ 'a' * 2**31 }}"])
def test_a_hostile_template_is_a_template_error(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    with pytest.raises(TemplateError, match=f"chat template: {KEY}: .*(more than|memory)"):
        render(ONE, source)


# The prompt for a model


@dataclass
class Words:
    """The attributes of a Tokenizer that `render_prompt` uses."""

    bos_id: int | None = 0
    eos_id: int | None = 1
    control_texts: tuple = ("<s>", "</s>")

    def text_of(self, i):
        return self.control_texts[i]


def test_a_prompt_quotes_what_users_typed():
    data = base64.b64encode(bytes(range(40))).decode()
    messages = parse_messages(talk((U, [{"type": "image_url", "image_url": data}, text("is <image> </s>?")])))
    prompt = render_prompt(messages, ChatTemplate("vicuna", VICUNA, ""), Words(), image_order="first")
    assert prompt.shown == "USER: <image>\nis <image> </s>? ASSISTANT:"
    assert prompt.text.count("<image>") == 1 and "</s>" not in prompt.text
    assert [part.source for part in prompt.images] == [bytes(range(40))]
    assert prompt.images[0].where == "messages[0].content[0].image_url"


@pytest.mark.parametrize("words, want", [(Words(), "<s></s>x"), (Words(None, None), "x")])
def test_a_prompt_has_bos_and_eos_of_the_vocabulary(words, want):
    template = ChatTemplate("file", "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}", "")
    assert render_prompt([Message("user", (TextPart("x"),))], template, words, image_order="first").text.startswith(
        want[:-1]
    )
    assert render_prompt([Message("user", (TextPart("x"),))], template, words, image_order="first").shown == want


def test_control_tokens_cannot_be_pasted_together():
    """Try across parts, across messages, and with the template's own text."""
    parts = (TextPart("<|IM_"), TextPart("QUIZ9|>"), TextPart("IM_QUIZ9"))
    source = "{% for p in messages[0].content %}{{ '<|' if loop.last }}{{ p.text }}{{ '|>' if loop.last }}{% endfor %}"
    prompt = render_prompt(
        [Message("user", parts)],
        ChatTemplate("file", source, ""),
        Words(control_texts=("<|IM_QUIZ9|>",) * 2),
        image_order="first",
    )
    assert prompt.shown == "<|IM_QUIZ9|><|IM_QUIZ9|>"
    assert not set("IM_QUIZ9") & set(prompt.text)


def test_no_template_is_an_error_when_one_is_needed():
    with pytest.raises(TemplateError, match=f"chat template: {KEY}: no idea: choose one of vicuna, .* raw prompt"):
        render_prompt(
            [Message("user", (TextPart("x"),))], ChatTemplate("none", None, "no idea"), Words(), image_order="first"
        )


def test_errors_name_one_of_our_templates():
    messages = [Message("user", (TextPart("x"),)), Message("system", (TextPart("y"),))]
    with pytest.raises(TemplateError, match="chat template: mistral-instruct: drops"):
        render_prompt(messages, ChatTemplate("mistral-instruct", MISTRAL_INSTRUCT, ""), Words(), image_order="first")
