"""JSON that answers must be: a grammar over the bytes of tokens.   V vocabulary.

llguidance (the `server` extra) says which tokens may come next; this file tells it what bytes each token stands for.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..chat.call_form import CallForm
from ..chat.calls import Tool
from ..errors import ParameterError
from ..extras import missing
from ..tokenizer.tokenizer import Tokenizer
from .call_grammar import MAX_SCHEMAS, CallSource
from .sampling import WantedAnswer, WantedFunction
from .schemas import TooManyBranches, closed

WHERE = "response_format.json_schema"
MAX_SCHEMA = 20_000  # characters, as JSON
CLOSING = '"}]0:,'  # signs that complete a JSON text, in the order in which they are tried inside a string
LETTERS = "jqz"  # no value, and no bracket, begins with one: where they may stand a string is open
LONGEST_WAY = 256  # tokens to the end that are looked for
GROWTH = 8  # tokens by which one more token may lengthen the way to the end
CONTROL = b"\xff"  # before a control token's text: no JSON has this byte, so that none is taken for text


class JsonGrammars:
    """Makes grammars for one vocabulary. What takes time for a large one is done once, when the first is made."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._making = threading.Lock()
        self._tokens: Any = None
        self._signs: dict[str, list[int]] = {}

    def grammar(
        self, schema: Mapping[str, Any] | None = None, where: str = WHERE, field: str = "schema"
    ) -> "JsonGrammar":
        """Any JSON object, or what a JSON Schema describes. ParameterError for a schema that cannot be kept."""
        wanted: dict[str, Any] = {"type": "object"} if schema is None else dict(schema)
        _check_size(wanted, where, field)

        def source(llguidance: Any) -> str:
            options = {"whitespace_flexible": False}
            made: str = llguidance.LLMatcher.grammar_from_json_schema(closed(wanted), overrides=options)
            return made

        return self._made(WantedAnswer(wanted), source, where, field)

    def again(self, wanted: WantedAnswer) -> "JsonGrammar":
        """Make the grammar of what another one wanted. Raises ParameterError."""
        if wanted.form is None:
            return self.grammar(wanted.text if isinstance(wanted.text, dict) else None)
        tools = [Tool(f.name, "", f.parameters, f"functions[{i}]") for i, f in enumerate(wanted.functions)]
        return self.calls(wanted.form, tools, several=wanted.several, text=wanted.text)

    def calls(
        self,
        form: CallForm,
        tools: Sequence[Tool],
        *,
        several: bool,
        text: bool | Mapping[str, Any],
    ) -> "JsonGrammar":
        """Make the grammar of calls of `tools`: one, or `several` where the form has them.

        `text`: whether an answer in words may stand in their place, or the JSON Schema that it must match. Raises
        ParameterError for a schema that cannot be kept."""
        for tool in tools:
            _check_size(dict(tool.parameters), tool.where, "parameters")
        size = sum(len(json.dumps(tool.parameters)) for tool in tools)
        if size > MAX_SCHEMAS:
            problem = f"{size:,} characters of schemas together, expected at most {MAX_SCHEMAS:,}"
            raise ParameterError("tools", "length", problem)
        control = {self._tokenizer.text_of(i): i for i in self._tokenizer.vocabulary.control}
        source = CallSource(form, control, several and form.joint is not None)
        functions = [WantedFunction(tool.name, dict(tool.parameters)) for tool in tools]
        wanted = WantedAnswer(text if isinstance(text, bool) else dict(text), form, functions, several)
        try:
            return self._made(wanted, lambda _: source.grammar(tools, text), "tools", "parameters", source.has_control)
        except ParameterError:
            for tool in tools:  # name the one that is at fault
                self.grammar(tool.parameters, tool.where, "parameters")
            raise

    def _made(
        self, wanted: WantedAnswer, source: Callable[[Any], str], where: str, field: str, control: bool = False
    ) -> "JsonGrammar":
        """Compile what `source` returns, given llguidance. Raises ParameterError if it cannot be kept."""
        llguidance = _llguidance()
        with self._making:
            if self._tokens is None:
                known = _Tokens(self._tokenizer)
                self._signs = {c: [i for i, t in enumerate(known.tokens) if t == c.encode()] for c in CLOSING + LETTERS}
                self._tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(known))
        text = ""
        try:
            text = source(llguidance)
            problem = llguidance.LLMatcher.validate_grammar(text, self._tokens)
        except (ValueError, TooManyBranches) as error:
            problem = str(error)
        if problem:
            raise ParameterError(where, field, problem.splitlines()[0])
        end = np.zeros(self._tokenizer.n_vocab, bool)
        end[list(self._tokenizer.end_ids)] = True
        return JsonGrammar(self._tokens, text, end, self._signs, control, wanted, (where, field))


def _check_size(schema: dict[str, Any], where: str, field: str) -> None:
    """Refuse schemas that llguidance would take too long for: seconds above 100 kB, and without end for a large
    `multipleOf`."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise ParameterError(where, field, f"{len(text):,} characters, expected at most {MAX_SCHEMA:,}")
    level: list[Any] = [schema]
    while level:
        for node in level:
            if isinstance(node, dict) and isinstance(node.get("multipleOf"), int | float):
                raise ParameterError(where, field, "multipleOf is not supported")
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]


class JsonGrammar:
    """A `generation.sampling.Grammar`, made by `JsonGrammars`. No optional white space: an answer is as short as it can
    be."""

    def __init__(
        self, tokens: Any, source: str, end: np.ndarray, signs: Mapping[str, list[int]], control: bool,
        wanted: WantedAnswer, at: tuple[str, str],
    ) -> None:  # fmt: skip
        self.control, self.wanted, self._at = control, wanted, at
        self._tokens, self._source, self._end, self._signs = tokens, source, end, signs

    def start(self, limit: int) -> "_Matcher":
        return _Matcher(_llguidance().LLMatcher(self._tokens, self._source), self._end, self._signs, limit, self._at)


class _Matcher:
    """One answer's way through the grammar.

    A model that goes on and on is led to the end before its `limit` tokens run out: a token after which the JSON could
    no longer be completed is replaced by the next of the shortest way to the end that is known."""

    def __init__(
        self, matcher: Any, end: np.ndarray, signs: Mapping[str, list[int]], limit: int, at: tuple[str, str]
    ) -> None:
        self._matcher, self._end, self._signs, self._left, self._at = matcher, end, signs, limit, at
        self._unsure = limit  # above so many tokens left the way to the end is known to be short enough
        self.cut = False

    def allowed(self) -> np.ndarray:
        """(V,) bool. Once the JSON is complete: only what ends a generation.

        Raises ParameterError if llguidance gives up, which it reports as the end of an answer, or no token is left."""
        allowed = self._end.copy() if self._matcher.is_stopped() else self._mask(self._matcher)
        if self._matcher.is_error():
            raise ParameterError(*self._at, self._matcher.get_error().splitlines()[0])
        if self._matcher.is_accepting():
            allowed |= self._end
        if not allowed.any():
            raise ParameterError(*self._at, "this vocabulary has no token to go on with")
        return allowed

    def _mask(self, matcher: Any) -> np.ndarray:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little", count=len(self._end)).astype(bool)

    def instead(self, token_id: int) -> int | None:
        """Return the token to take in the place of one that leads too far; None if it does not."""
        if self._left > self._unsure or self._end[token_id]:
            return None
        ahead = self._way([token_id])
        if ahead is not None and len(ahead) < self._left:
            self._unsure = self._left - 1 - (self._left - 1 - len(ahead)) // GROWTH
            return None
        way = self._way([])
        if way is None or len(way) > self._left:
            return None
        self.cut = True
        return way[0] if way else int(self._end.argmax())

    def _way(self, first: list[int]) -> list[int] | None:
        """Return the tokens that complete the JSON after `first`, the shorter of two ways; None if neither leads to
        the end."""
        ways = [way for last in (False, True) if (way := self._one_way(first, last)) is not None]
        return min(ways, key=len, default=None)

    def _one_way(self, first: list[int], last: bool) -> list[int] | None:
        matcher = self._matcher.deep_copy()
        matcher.consume_tokens(first)
        way: list[int] = []
        while not (matcher.is_accepting() or matcher.is_stopped()):
            if len(way) == min(self._left, LONGEST_WAY):
                return None
            way.append(self._closing(self._mask(matcher), last))
            matcher.consume_token(way[-1])
        return way

    def _closing(self, mask: np.ndarray, last: bool) -> int:
        """Return the token that brings the end nearer: a quote inside a string, else a bracket, else the smallest
        value.

        Where only letters may stand, of a name or a word, the first token that fits or the last."""
        inside = any(mask[self._signs[letter]].any() for letter in LETTERS)
        for sign in CLOSING if inside else (*CLOSING[1:3], CLOSING[0], *CLOSING[3:]):
            for token_id in self._signs[sign]:
                if mask[token_id]:
                    return token_id
        return int(np.flatnonzero(mask)[-1 if last else 0])

    def accept(self, token_id: int) -> None:
        self._left -= 1
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
        problem = f"needs llguidance: {missing('server')}"
        raise ParameterError(WHERE, "schema", problem) from None
    return llguidance
