"""Choose a model's chat template: its own, or a named one of ours by stated rules. Never guesses silently.

`docs/prompts.md` shows how each named template renders a conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import TemplateError, nearest
from ..gguf.file import GGUFFile

KEY = "tokenizer.chat_template"
LARGEST = 1 << 20  # bytes of a file with a template; the largest of known families have 20,000

# haotian-liu/LLaVA conversation.py, conv "vicuna_v1" (roles USER and ASSISTANT, separators " " and "</s>"), without its
# default system text: neither Hugging Face's template for llava-1.5-7b-hf nor llama.cpp's `vicuna` sends one. In a list
# of parts it puts the pictures before the texts, as Hugging Face's template does and as LLaVA was trained.
VICUNA = """\
{%- for message in messages -%}
    {{- '' if message.role == 'system' else 'USER: ' if message.role == 'user' else 'ASSISTANT: ' -}}
    {%- if message.content is string -%}{{ message.content }}
    {%- else -%}
        {%- set line = namespace(start='') -%}
        {%- for part in message.content if part.type == 'image' -%}
            {{- line.start + '<image>' -}}{%- set line.start = '\\n' -%}
        {%- endfor -%}
        {%- for part in message.content if part.type == 'text' -%}
            {{- line.start + part.text -}}{%- set line.start = '\\n' -%}
        {%- endfor -%}
    {%- endif -%}
    {{- ' ' if message.role in ['system', 'user'] else '</s>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

# Mistral-7B-Instruct-v0.2. It has no system role: a system text opens the next user message.
MISTRAL_INSTRUCT = """\
{%- set pending = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set pending.system = pending.system + message.content + '\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- '[INST] ' + pending.system + message.content + ' [/INST]' -}}
        {%- set pending.system = '' -%}
    {%- else -%}{{ ' ' + message.content + '</s>' }}
    {%- endif -%}
{%- endfor -%}
"""

# Meta-Llama-3-8B-Instruct, the format that xtuner/llava-llama-3-8b was trained with.
LLAVA_LLAMA_3 = """\
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

# Llama-3.2-Vision (meta-llama/Llama-3.2-11B-Vision-Instruct), without the dates that it puts before a text alone.
LLAMA_VISION = """\
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
    {%- if message.content is string -%}{{- message.content | trim -}}
    {%- else -%}
        {%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text | trim -}}{%- endfor -%}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

# OpenAI's chat markup, as Qwen, Yi and Hermes models have it, without a default system text.
CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# Gemma 3 (google/gemma-3-4b-it, chat_template.json): a system text opens the next user turn.
GEMMA = """\
{%- set pending = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set pending.system = pending.system + message.content + '\\n\\n' -%}
    {%- else -%}
        {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' + pending.system -}}
        {%- set pending.system = '' -%}
        {%- if message.content is string -%}{{ message.content | trim }}
        {%- else -%}
            {%- for part in message.content -%}
                {{- '<image>' if part.type == 'image' else part.text | trim -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '<end_of_turn>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# SmolVLM and SmolVLM2 (HuggingFaceTB/SmolVLM-Instruct, chat_template.json): no space before a picture.
SMOLVLM = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
    {{- message.role | capitalize + ':' -}}
    {%- if message.content is string -%}
        {{- ('' if message.content.startswith('<image>') else ' ') + message.content -}}
    {%- else -%}
        {{- '' if message.content[0].type == 'image' else ' ' -}}
        {%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

# Pixtral-12B (mistralai/Pixtral-12B-2409, mistral-common's version 3): a system text opens the last user message.
PIXTRAL = """\
{%- set found = namespace(system='', last=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set found.system = found.system + message.content + '\\n\\n' -%}
    {%- elif message.role == 'user' -%}{%- set found.last = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages if message.role != 'system' -%}
    {{- '[INST]' if message.role == 'user' else '' -}}
    {{- found.system if message is sameas messages[found.last] else '' -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- '[/INST]' if message.role == 'user' else '</s>' -}}
{%- endfor -%}
"""

# Mistral Small 3.1 (mistralai/Mistral-Small-3.1-24B-Instruct-2503, mistral-common's version 7).
MISTRAL_SMALL = """\
{%- set beginning = {'system': '[SYSTEM_PROMPT]', 'user': '[INST]', 'assistant': ''} -%}
{%- set end = {'system': '[/SYSTEM_PROMPT]', 'user': '[/INST]', 'assistant': '</s>'} -%}
{%- for message in messages -%}
    {{- beginning[message.role] -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- end[message.role] -}}
{%- endfor -%}
"""

TEMPLATES: Mapping[str, str] = {
    "vicuna": VICUNA,
    "mistral-instruct": MISTRAL_INSTRUCT,
    "llama-3.2-vision": LLAMA_VISION,
    "llava-llama-3": LLAVA_LLAMA_3,
    "chatml": CHATML,
    "gemma": GEMMA,
    "smolvlm": SMOLVLM,
    "mistral-small": MISTRAL_SMALL,
    "pixtral": PIXTRAL,
}
TELLTALES = {  # the tokens that only one format uses, or none of those behind it
    "llama-3.2-vision": ("<|image|>", "<|eot_id|>"),
    "llava-llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "smolvlm": ("<end_of_utterance>", "<fake_token_around_image>"),  # such a vocabulary has ChatML's too
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "mistral-small": ("[SYSTEM_PROMPT]", "[IMG_BREAK]"),
    "pixtral": ("[IMG_BREAK]", "[IMG_END]"),
}
MISTRAL_7B = {  # a shape that no Llama or Vicuna has
    "llama.block_count": 32,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.feed_forward_length": 14336,
}


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template in use. `source` is None if nothing tells which one the model needs. `why` tells a person how it
    was chosen; `where` is the file it came from."""

    name: str
    source: str | None
    why: str
    where: str = "chat template"

    @property
    def field(self) -> str:
        """Return the field that an error names."""
        return {"file": KEY, "none": KEY, "given": "template"}.get(self.name, self.name)

    def error(self, problem: str) -> TemplateError:
        """Return an error that names the template."""
        return TemplateError(self.where, self.field, problem)


def choose_template(file: GGUFFile, *, has_mmproj: bool, template: str | Path | None = None) -> ChatTemplate:
    """Choose the requested template, else the file's own, else by the first rule that applies: tokens that only one
    format has, the model's name, Mistral-7B's shape, and vicuna for anything else with an mmproj file.

    `template` is the name of one of ours, jinja source, or the path of a file with it. Raises TemplateError for an
    unknown name and for a file that cannot be read."""
    if template is not None:
        return _asked_for(template)
    source = file.string(KEY, "")
    if source.strip():
        return ChatTemplate("file", source, f"the file's own ({KEY})", Path(file.path).name)
    name, why = _by_tokens(file) or _by_name(file) or _by_shape(file, has_mmproj) or (None, "")
    if name is None:
        why = f"the file has no {KEY}, and nothing in it tells which format it was trained on"
        return ChatTemplate("none", None, why, Path(file.path).name)
    return ChatTemplate(name, TEMPLATES[name], f"the file has no {KEY}; {why}")


def _asked_for(template: str | Path) -> ChatTemplate:
    """Return the template that the user named, wrote or keeps in a file. Raises TemplateError."""
    if isinstance(template, Path):
        return ChatTemplate("given", _read(template), f"read from {template}", template.name)
    if template in TEMPLATES:
        return ChatTemplate(template, TEMPLATES[template], "asked for")
    if "{{" in template or "{%" in template:
        return ChatTemplate("given", template, "asked for")
    known = f"expected one of {', '.join(TEMPLATES)}, or a file with a chat template"
    problem = f"unknown, {known}{nearest(template, TEMPLATES)}"
    raise TemplateError("template", repr(template), problem)


def _read(path: Path) -> str:
    """Read the text of a file of at most LARGEST bytes. Raises TemplateError."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise TemplateError(path, "file", f"cannot be read: {getattr(error, 'strerror', None) or 'no path'}") from None
    if len(data) > LARGEST:
        raise TemplateError(path, "file", f"over {LARGEST:,} bytes, which no chat template has")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TemplateError(path, f"byte {error.start}", "not UTF-8, expected a chat template") from None
    if not text.strip():
        raise TemplateError(path, "file", "empty, expected a chat template")
    return text


def _by_tokens(file: GGUFFile) -> tuple[str, str] | None:
    """Choose by the tokens of the vocabulary: a name and the reason, or None."""
    tokens = set(file.array("tokenizer.ggml.tokens", "string"))
    for name, marks in TELLTALES.items():
        if tokens.issuperset(marks):
            return name, f"its vocabulary has {marks[0]}"
    return None


def _by_name(file: GGUFFile) -> tuple[str, str] | None:
    """Choose by the words in the model's name: a name and the reason, or None."""
    for key in ("general.name", "general.basename", "general.finetune"):
        value = file.string(key, "").lower()
        for name, words in (("mistral-instruct", ("bakllava", "mistral")), ("vicuna", ("vicuna", "llava"))):
            word = next((word for word in words if word in value), None)
            if word:
                return name, f"its {key} contains {word!r}"
    return None


def _by_shape(file: GGUFFile, has_mmproj: bool) -> tuple[str, str] | None:
    """Choose for a model with a vision tower by the shape of its decoder: a name and the reason, or None."""
    if not has_mmproj:
        return None
    if all(file.integer(key, 0, 1 << 31, 0) == value for key, value in MISTRAL_7B.items()):
        return "mistral-instruct", "it has the shape of Mistral-7B, as BakLLaVA does"
    return "vicuna", "it comes with an mmproj file, and LLaVA-1.5 was trained on this format"
