"""Make random pairs of SmolVLM and Idefics3: a text GGUF of arch `llama` with a BPE vocabulary, an mmproj with a SigLIP
tower and projector `idefics3`.

Keys, names and shapes are those that llama.cpp's converter writes (conversion/smolvlm.py, b11549). Sizes are odd and
unequal on purpose. D width, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

from .bpe_vocabulary import bpe_vocabulary
from .gemma3 import SiglipSpec, siglip_metadata, siglip_tower
from .pairs import Pair, TextSpec, stored, text_metadata, text_tensors
from .random_weights import Random
from .writing import Metadata, StoredTensor, write

FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NAMES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
LAST = ["<global-img>", *NAMES, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]

# The format that HuggingFaceTB/SmolVLM-256M-Instruct was trained with.
TEMPLATE = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
    {%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
    {{- message.role | capitalize + (':' if parts[0].type == 'image' else ': ') -}}
    {%- for part in parts -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Idefics3Spec(SiglipSpec):
    """A SigLIP tower and the projector of Idefics3."""

    longest: int | None = 168  # pixels of a picture's longer side before it fills whole tiles; None: no key


def idefics3_vocabulary() -> Metadata:
    """Return the `tokenizer.` keys: about 450 tokens, the words of `vocabulary.WORDS` among them, and the template."""
    return bpe_vocabulary("smollm", FIRST, LAST, TEMPLATE)


def build_idefics3(folder: Path, text: TextSpec, vision: Idefics3Spec, seed: int = 0) -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, which must exist. The same arguments give the same bytes."""
    random, vocabulary = Random(seed, 1.0), idefics3_vocabulary()
    pair = Pair(folder / "text.gguf", folder / "mmproj.gguf")
    tensors = stored(text_tensors(text, random, vocabulary), text, seed)
    write(pair.text, text_metadata(text, vocabulary), tensors, text.kind)
    tensors = stored(idefics3_tensors(vision, text.width, random), vision, seed)
    write(pair.mmproj, idefics3_metadata(vision, text.width), tensors, vision.kind)
    return pair


def idefics3_metadata(s: Idefics3Spec, text_width: int) -> Metadata:
    v = "clip.vision."
    longest = {} if s.longest is None else {v + "preproc_image_size": s.longest}
    return {
        **siglip_metadata(s, text_width),
        "clip.projector_type": "idefics3",
        v + "projector.scale_factor": s.merge,
        **longest,
    }


def idefics3_tensors(s: Idefics3Spec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    projection = random.matrix("mm.model.fc", text_width, s.merge**2 * s.width)
    return siglip_tower(s, {"mm.model.fc.weight": projection}, random)
