r"""List how each `tokenizer.ggml.pre` cuts text into words before byte-pair merging: a table of facts about models.

Names and rules are those of llama.cpp b10605 (`src/llama-vocab.cpp`, `src/unicode.cpp`), written as Oniguruma regexes.
This table follows llama.cpp even if it departs from the tokenizer that a model was trained with, because the name in
the file is llama.cpp's:

* letters outside ASCII have no case (`tekken`, `gpt-4o`);
* `youtu`, `tiny_aya` and `kimi-k2` do not cut between a small letter and a capital;
* a character class without `\p{...}` never matches white space outside ASCII (`[...&&\S]` below);
* digits grouped in threes from the right (`afmoe`, `tiny_aya`) take the text before them into their first group.

Each regex runs on every word that the previous one left; text that it does not match is a word of its own. All take
linear time: a look-behind stops a regex that would otherwise scan a long run again from each of its characters.
"""

from dataclasses import dataclass

CONTRACTION = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + BLANKS
SYMBOLS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BLANKS
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"

GPT2 = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{SYMBOLS}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{SYMBOLS}"
LINES = r"[^\n]+|\n+"
CJK_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
CJK_BROAD = r"[[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&\S]+"
HAN = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}"
    r"\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}"
)
PUNCTUATED_WORD = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + BLANKS
)


def cased_word(letters: str, suffix: str) -> str:
    """Return a regex for words, cut before a capital after a small letter. Only a-z and A-Z have a case. `letters` goes
    inside [...]."""
    upper, lower = f"[[{letters}]&&[^a-z]]", f"[[{letters}]&&[^A-Z]]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"


@dataclass(frozen=True)
class WordCut:
    """One cut. `behavior`, in the words of the `tokenizers` library, is the fate of the text that `regex` matches."""

    regex: str
    behavior: str = "isolated"


# Groups digits in threes from the right: the first group ends where the rest of the run divides by three.
DIGITS_FROM_RIGHT = (
    WordCut(r"(?<!\p{N})\p{N}{1,3}(?=(?>(?:\p{N}{3})*)(?!\p{N}))", "merged_with_previous"),
    WordCut(r"\G\p{N}{3}"),
)
# Does the same for ASCII digits inside a run of any digits. Only the start of a group is a cut.
ASCII_DIGITS_FROM_RIGHT = (
    WordCut(r"\p{N}+"),
    WordCut(r"(?<![0-9])[0-9]{1,2}(?=(?>(?:[0-9]{3})+)(?![0-9]))", "merged_with_previous"),
    WordCut(r"[0-9]{3}", "merged_with_next"),
)

DEEPSEEK_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}"
    r"\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}"
    r"\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}"
    r"\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}"
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}"
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}"
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}"
    r"\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}"
    r"\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}"
    r"\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}"
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)


@dataclass(frozen=True)
class Pre:
    """The pre-tokenizer that one name stands for."""

    cuts: tuple[WordCut, ...]  # in order
    byte_level: bool = True  # words are spelled in GPT-2's byte letters, else in characters, with <0xXX> for others
    whole_words: bool = False  # a word that is a token is taken without merging (llama.cpp's ignore_merges)
    whole_newlines: bool = False  # a run of newlines that is a token is taken without merging
    spaces: bool = False  # every space becomes U+2581 before merging, and a space again in decoding
    add_bos: bool = False  # whether a text starts with BOS unless the file says otherwise
    always_bos: bool = False  # BOS is added even if the file says otherwise
    default_bos: bool = True  # token 11 is BOS if the file names none


def regexes(*patterns: str) -> tuple[WordCut, ...]:
    """Return cuts that make each match a word of its own."""
    return tuple(WordCut(p) for p in patterns)


_GPT2 = Pre(regexes(GPT2))
_DIGIT_GPT2 = Pre(regexes(r"\p{N}", GPT2))
_LLAMA3 = Pre(regexes(LLAMA3))
_LLAMA3_BOS = Pre(regexes(LLAMA3), whole_words=True, add_bos=True)
_QWEN2 = Pre(regexes(QWEN2))
_GPT4O = Pre(regexes(cased_word(r"\p{L}", f"(?:{CONTRACTION})?") + r"|\p{N}{1,3}|" + SYMBOLS_SLASH))
_DEEPSEEK3 = Pre(regexes(r"\p{N}{1,3}", CJK_KANA, PUNCTUATED_WORD))
_FINNISH = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_BLOOM = Pre(regexes(_FINNISH))
_TINY_AYA = Pre(
    DIGITS_FROM_RIGHT + regexes(rf"{MARKED_WORD}(?:{CONTRACTION})?|\p{{N}}{{1,3}}|{SYMBOLS_SLASH}"),
)
_BAILING = Pre(
    regexes(
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|"
        + WORD
        + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
)
# A run of blanks is scanned only once for a newline: only the start of a run passes the look-behind.
_JAIS2_BLANKS = r"(?<![^\S\r\n])\s*[\r\n]+|" + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_GEMMA4 = Pre(regexes(LINES), byte_level=False, whole_newlines=True, spaces=True, add_bos=True, always_bos=True)

PRES: dict[str, Pre] = {
    "default": Pre(regexes(r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9]{3}")),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _LLAMA3_BOS),
    **dict.fromkeys(("lfm2", "jina-v5-nano"), _LLAMA3_BOS),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("glm4", "chatglm-bpe"), Pre(regexes(LLAMA3), default_bos=False)),
    "minicpm5": Pre(regexes(r"\p{N}{1,3}", rf"{CONTRACTION}|{WORD}|\p{{N}}+|{SYMBOLS}"), whole_words=True),
    "jais-2": Pre(
        regexes(
            rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_JAIS2_BLANKS}" + r"\s{1,2}(?!\S)|\s"
        )
    ),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de"), _GPT2),
    **dict.fromkeys(("a.x-4.0", "mellum", "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe"), _GPT2),
    **dict.fromkeys(("mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"), _GPT2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), _DIGIT_GPT2),
    **dict.fromkeys(("minerva-7b", "mellum2"), _DIGIT_GPT2),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2"), _QWEN2),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), _QWEN2),
    "qwen35": Pre(
        regexes(
            rf"{CONTRACTION}|{MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{BLANKS}",
        )
    ),
    "laguna": Pre(regexes(LINES, QWEN2)),
    "falcon": Pre(regexes(r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9]{3}")),
    "deepseek-llm": Pre(
        regexes(
            r"[\r\n]",
            rf"\s?[{DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+",
            r"(?<!\s)\s+\z",
            CJK_BROAD,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Pre(regexes(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_BROAD, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
    "youtu": Pre(
        regexes(
            r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
            r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}"
            r"\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+"
            rf"|[\x{{3105}}-\x{{312F}}]+|{CJK_KANA}",
            rf"{MARKED_WORD}(?:{CONTRACTION})?|\p{{N}}|{SYMBOLS_SLASH}",
        ),
        whole_words=True,
    ),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _BLOOM),
    "viking": Pre(regexes(_FINNISH, r"\p{N}")),
    "tekken": Pre(
        regexes(cased_word(r"\p{L}", "") + r"|\p{N}|" + SYMBOLS_SLASH),
        whole_words=True,
        add_bos=True,
    ),
    "chameleon": Pre(
        regexes(r"<sentinel:[0-9]+>", r"IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2),
        add_bos=True,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "granite-embed-multi-97m": Pre(
        regexes(cased_word(r"\p{L}\p{M}", f"(?:{CONTRACTION})?") + r"|\p{N}{1,3}|" + SYMBOLS_SLASH),
        whole_words=True,
    ),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA),
    "kimi-k2": Pre(
        regexes(
            rf"[{HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{HAN}]]+(?:{CONTRACTION})?|\p{{N}}{{1,3}}|{SYMBOLS}",
        )
    ),
    "superbpe": Pre(ASCII_DIGITS_FROM_RIGHT),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    "seed-coder": Pre(regexes(rf"{CONTRACTION}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{BLANKS}")),
    "afmoe": Pre(
        DIGITS_FROM_RIGHT
        + regexes(
            r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}"
            r"\x{E40}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}"
            r"\x{1100}-\x{11FF}]+",
            PUNCTUATED_WORD,
        )
    ),
    "exaone-moe": Pre(
        regexes(
            rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )
    ),
    **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _GEMMA4),
    "sarvam-moe": Pre(regexes(LINES), byte_level=False, spaces=True),
    "whitespace": Pre(regexes(r"\S+"), byte_level=False),
}
