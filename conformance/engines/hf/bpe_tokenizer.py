"""Make transformers' tokenizer from a byte-level BPE vocabulary in a GGUF file.

A file names its rule for cutting text and does not hold it. `CUTS` has the rules of tokenizer.json files that released
models carry, by that name; this project's own rules (`llava_ref.tokenizer`) are not used.
"""

from typing import Any

from llava_ref.gguf.file import GGUFFile
from llava_ref.tokenizer.vocabulary import CONTROL, UNKNOWN, USER_DEFINED

KEY = "tokenizer.ggml."
LLAMA_3 = (  # meta-llama/Meta-Llama-3-8B, tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (  # mistralai/Mistral-Nemo-Base-2407, tokenizer.json
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE_WORDS = ("llama-bpe", "pixtral", "tekken")  # a word that is a token is taken without merging ("ignore_merges")
THEIRS = "transformers' tokenizer, made from the GGUF file's tokens and merges and the rule that tokenizer.json has"


def cuts(pre: str) -> Any:
    """Return the tokenizers package's rule for a GGUF file's `tokenizer.ggml.pre`, None for one that is not known."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    letters = ByteLevel(add_prefix_space=False, use_regex=False)
    match pre:
        case "smollm":  # HuggingFaceTB/SmolLM2-135M: GPT-2's, each digit by itself
            return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        case "llama-bpe" | "pixtral":  # the second by llama.cpp's word: it cuts as for the first
            return Sequence([Split(Regex(LLAMA_3), "isolated"), letters])
        case "tekken":
            return Sequence([Split(Regex(TEKKEN), "isolated"), letters])
    return None


def bpe_tokenizer(file: GGUFFile) -> Any:
    """Return transformers' tokenizer of a file, or None where the rule for cutting text is not known."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if (rule := cuts(pre := file.string(KEY + "pre", ""))) is None:
        return None
    texts = file.array(KEY + "tokens", "string")
    kinds = file.array(KEY + "token_type", "int")
    merges = [tuple(merge.split(" ", 1)) for merge in file.array(KEY + "merges", "string")]
    ids = {text: i for i, text in enumerate(texts)}
    tokenizer = Tokenizer(BPE(ids, merges, ignore_merges=pre in WHOLE_WORDS))
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, ByteLevel()
    for text, kind in zip(texts, kinds, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(text, special=kind != USER_DEFINED, normalized=False)])
    fast: Any = PreTrainedTokenizerFast
    if file.boolean(KEY + "add_bos_token", False):
        bos = file.integer(KEY + "bos_token_id", 0, len(texts) - 1)
        tokenizer.post_processor = TemplateProcessing(f"{texts[bos]} $A", None, [(texts[bos], bos)])
    return fast(tokenizer_object=tokenizer)
