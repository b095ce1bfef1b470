"""Which chat template a model file gets."""

from dataclasses import dataclass, field

import pytest

from llava_ref.errors import GGUFError, TemplateError
from llava_ref.templates import CHATML, KEY, TEMPLATES, ChatTemplate, choose_template

OWN = "{{ messages[0].content }}"


@dataclass
class File:
    """What `choose_template` asks a GGUFFile for."""

    metadata: dict = field(default_factory=dict)

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


@pytest.mark.parametrize(
    "metadata, has_mmproj, name, why",
    [
        ({KEY: OWN, **IM}, True, "file", f"the file's own ({KEY})"),
        ({KEY: " \n"}, True, "vicuna", "it comes with an mmproj file"),
        ({}, True, "vicuna", "it comes with an mmproj file"),
        ({}, False, "none", "nothing in it tells"),
        (MISTRAL, False, "none", "nothing in it tells"),
        (LLAMA_3, False, "llava-llama-3", "its vocabulary has <|start_header_id|>"),
        (LLAMA_3 | {"general.name": "LLaVA Mistral"}, True, "llava-llama-3", "its vocabulary"),
        (IM, True, "chatml", "its vocabulary has <|im_start|>"),
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
def test_which_template(metadata, has_mmproj, name, why):
    chosen = choose_template(File(metadata), has_mmproj=has_mmproj)
    assert chosen.name == name and why in chosen.why
    assert chosen.source == {**TEMPLATES, "file": OWN, "none": None}[name]


def test_a_template_by_name():
    chosen = choose_template(File({KEY: OWN}), has_mmproj=True, name="chatml")
    assert chosen == ChatTemplate("chatml", CHATML, "asked for")
    with pytest.raises(TemplateError, match="template: 'vicunna': unknown, expected one of vicuna, mistral-instruct,"):
        choose_template(File(), has_mmproj=True, name="vicunna")


def test_a_template_of_the_wrong_type():
    with pytest.raises(GGUFError, match=f"x.gguf: {KEY}: is not a string"):
        choose_template(File({KEY: 5}), has_mmproj=True)
