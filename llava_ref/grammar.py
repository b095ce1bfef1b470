"""JSON that answers must be: a grammar over the bytes of tokens.   V vocabulary.

llguidance (the `server` extra) says which tokens may come next; this file tells it what bytes each token stands for.
"""

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import ParameterError
from .schemas import TooManyBranches, closed
from .tokenizer import Tokenizer

WHERE = "response_format.json_schema"
MAX_SCHEMA = 20_000  # characters, as JSON
CONTROL = b"\xff"  # before a control token's text: no JSON has this byte, so that none is taken for text


class JsonGrammars:
    """Makes grammars for one vocabulary. What takes time for a large one is done once, when the first is made."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._making = threading.Lock()
        self._tokens: Any = None

    def grammar(self, schema: Mapping[str, Any] | None = None, where: str = WHERE) -> "JsonGrammar":
        """Any JSON object, or what a JSON Schema describes. ParameterError for a schema that cannot be kept."""
        wanted = {"type": "object"} if schema is None else dict(schema)
        _check_size(wanted, where)
        llguidance = _llguidance()
        with self._making:
            if self._tokens is None:
                self._tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(self._tokenizer)))
        try:
            options = {"whitespace_flexible": False}
            source = llguidance.LLMatcher.grammar_from_json_schema(closed(wanted), overrides=options)
            problem = llguidance.LLMatcher.validate_grammar(source, self._tokens)
        except (ValueError, TooManyBranches) as error:
            problem = str(error)
        if problem:
            raise ParameterError(where, "schema", problem.splitlines()[0])
        end = np.zeros(self._tokenizer.n_vocab, bool)
        end[list(self._tokenizer.end_ids)] = True
        return JsonGrammar(self._tokens, source, end)


def _check_size(schema: dict[str, Any], where: str) -> None:
    """What llguidance would take too long for: seconds above 100 kB, and without end for a large `multipleOf`."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise ParameterError(where, "schema", f"{len(text):,} characters, expected at most {MAX_SCHEMA:,}")
    level: list[Any] = [schema]
    while level:
        for node in level:
            if isinstance(node, dict) and isinstance(node.get("multipleOf"), int | float):
                raise ParameterError(where, "schema", "multipleOf is not supported")
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]


class JsonGrammar:
    """A `sampler.Grammar`, made by `JsonGrammars`. No optional white space: an answer is as short as it can be."""

    def __init__(self, tokens: Any, source: str, end: np.ndarray) -> None:
        self._tokens, self._source, self._end = tokens, source, end

    def start(self) -> "_Matcher":
        return _Matcher(_llguidance().LLMatcher(self._tokens, self._source), self._end)


class _Matcher:
    """One answer's way through the grammar."""

    def __init__(self, matcher: Any, end: np.ndarray) -> None:
        self._matcher, self._end = matcher, end

    def allowed(self) -> np.ndarray:
        """(V,) bool. Once the JSON is complete: only what ends a generation."""
        if self._matcher.is_stopped():
            return self._end
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=len(self._end)).astype(bool)
        if self._matcher.is_accepting():
            allowed |= self._end
        if not allowed.any():
            problem = "this vocabulary has no token to go on with"
            raise ParameterError(WHERE, "schema", self._matcher.get_error() or problem)
        return allowed

    def accept(self, token_id: int) -> None:
        if not self._end[token_id]:
            self._matcher.consume_token(token_id)


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        control = tokenizer.vocabulary.control
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id is not None else min(tokenizer.end_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(control)
        self.tokens = [
            CONTROL + tokenizer.token_bytes(i) if i in control else tokenizer.token_bytes(i)
            for i in range(tokenizer.n_vocab)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        known = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._encode(known, special=False, prefix=False)


def _llguidance() -> Any:
    """ParameterError if it is not installed."""
    try:
        import llguidance
    except ImportError:
        problem = "needs llguidance: pip install 'llava-ref[server]'"
        raise ParameterError(WHERE, "schema", problem) from None
    return llguidance
