"""Test the choice of a chat template for a model file."""

from dataclasses import dataclass, field

import pytest

from llava_ref.chat.templates import CHATML, KEY, LARGEST, TEMPLATES, ChatTemplate, choose_template
from llava_ref.errors import GGUFError, TemplateError

OWN = "{{ messages[0].content }}"


@dataclass
class File:
    """The methods of a GGUFFile that `choose_template` uses."""

    metadata: dict = field(default_factory=dict)
    path: str = "models/x.gguf"

    def string(self, key, default):
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise GGUFError("x.gguf", key, "is not a string")
        return value

    def integer(self, key, low, high, default):
        return self.metadata.get(key, default)

    def array(self, key, kind):
        assert (key, kind) == ("tokenizer.ggml.tokens", "string")
        return ["<s>", "</s>", *self.metadata.get("tokens", [])]


MISTRAL = {"llama.block_count": 32, "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
           "llama.feed_forward_length": 14336}  # fmt: skip
LLAMA_3 = {"tokens": ["<|start_header_id|>", "<|eot_id|>"]}
IM = {"tokens": ["<|im_start|>", "<|im_end|>"]}
SMOL = {"tokens": [*IM["tokens"], "<fake_token_around_image>", "<end_of_utterance>"]}

PIXTRAL = {"tokens": ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]}


@pytest.mark.parametrize(
    "metadata, has_mmproj, name, why",
    [
        ({KEY: OWN, **IM}, True, "file", f"the file's own ({KEY})"),
        ({KEY: " \n"}, True, "vicuna", "it comes with an mmproj file"),
        ({}, True, "vicuna", "it comes with an mmproj file"),
        ({}, False, "none", "nothing in it tells"),
        (MISTRAL, False, "none", "nothing in it tells"),
        (LLAMA_3, False, "llava-llama-3", "its vocabulary has <|start_header_id|>"),
        ({"tokens": [*LLAMA_3["tokens"], "<|image|>"]}, True, "llama-3.2-vision", "its vocabulary has <|image|>"),
        (LLAMA_3 | {"general.name": "LLaVA Mistral"}, True, "llava-llama-3", "its vocabulary"),
        (IM, True, "chatml", "its vocabulary has <|im_start|>"),
        (SMOL, True, "smolvlm", "its vocabulary has <end_of_utterance>"),
        (PIXTRAL, True, "pixtral", "its vocabulary has [IMG_BREAK]"),
        (PIXTRAL | {"general.name": "Mistral"}, True, "pixtral", "its vocabulary"),
        ({"tokens": [*PIXTRAL["tokens"], "[SYSTEM_PROMPT]"]}, True, "mistral-small", "[SYSTEM_PROMPT]"),
        ({"tokens": ["<|im_start|>"]}, True, "vicuna", "mmproj"),
        ({"general.name": "BakLLaVA-1"}, True, "mistral-instruct", "its general.name contains 'bakllava'"),
        ({"general.name": "LLaMA v2", "general.basename": "Mistral-7B"}, False, "mistral-instruct", "general.basename"),
        ({"general.name": "llava-v1.5-7b"}, False, "vicuna", "its general.name contains 'llava'"),
        ({"general.name": "llava-v1.6-mistral-7b"}, True, "mistral-instruct", "'mistral'"),
        ({"general.finetune": "Vicuna"}, False, "vicuna", "general.finetune contains 'vicuna'"),
        (MISTRAL | {"general.name": "LLaMA v2"}, True, "mistral-instruct", "the shape of Mistral-7B"),
        (MISTRAL | {"llama.attention.head_count_kv": 32}, True, "vicuna", "mmproj"),
    ],
)
def test_the_rules_that_choose_a_template(metadata, has_mmproj, name, why):
    chosen = choose_template(File(metadata), has_mmproj=has_mmproj)
    assert chosen.name == name and why in chosen.why
    assert chosen.source == {**TEMPLATES, "file": OWN, "none": None}[name]
    from_file = name in ("file", "none")
    assert (chosen.where, chosen.field) == (("x.gguf", KEY) if from_file else ("chat template", name))


def test_a_template_by_name():
    chosen = choose_template(File({KEY: OWN}), has_mmproj=True, template="chatml")
    assert chosen == ChatTemplate("chatml", CHATML, "asked for")
    with pytest.raises(
        TemplateError, match="template: 'vicunna': unknown, expected one of vicuna, mistral-instruct,.*file"
    ):
        choose_template(File(), has_mmproj=True, template="vicunna")


@pytest.mark.parametrize("source", [OWN, "{% if true %}x{% endif %}"])
def test_a_template_as_text(source):
    chosen = choose_template(File({KEY: "other"}), has_mmproj=True, template=source)
    assert chosen == ChatTemplate("given", source, "asked for") and chosen.field == "template"


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + OWN.encode(), OWN.encode()], ids=["byte order mark", "plain"])
def test_a_template_from_a_file(tmp_path, data):
    path = tmp_path / "mine.jinja"
    path.write_bytes(data)
    chosen = choose_template(File(), has_mmproj=True, template=path)
    assert chosen == ChatTemplate("given", OWN, f"read from {path}", "mine.jinja")
    assert str(chosen.error("line 3: divides by zero")) == "mine.jinja: template: line 3: divides by zero"


@pytest.mark.parametrize(
    "content, error",
    [
        (None, "file: cannot be read: No such file or directory"),
        ("folder", "file: cannot be read: Is a directory"),
        (b"a\xff", "byte 1: not UTF-8, expected a chat template"),
        (b" \n", "file: empty, expected a chat template"),
        (b"x" * (LARGEST + 1), "file: over 1,048,576 bytes, which no chat template has"),
    ],
)
def test_a_file_without_a_template_is_an_error(tmp_path, content, error):
    path = tmp_path / "mine.jinja"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(TemplateError) as caught:
        choose_template(File(), has_mmproj=True, template=path)
    assert str(caught.value) == f"{path}: {error}"


def test_a_template_of_the_wrong_type_is_an_error():
    with pytest.raises(GGUFError, match=f"x.gguf: {KEY}: is not a string"):
        choose_template(File({KEY: 5}), has_mmproj=True)
