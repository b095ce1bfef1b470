"""Encode text by SentencePiece's merges by score (SPM), for files with `tokenizer.ggml.model = "llama"`.

The two neighbours whose joined text is the token of the highest score are merged first, the leftmost of equals. The
`tokenizers` library merges by the rank of a pair instead. Two pairs may join to the same text, so its result can
differ: "aaa" from "a" + "aa" or from "aa" + "a" has one score here and two ranks there. Takes O(n log n) for n
characters.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from ..errors import PromptError

SPACE = "▁"  # U+2581


class SpmMerger:
    """Merges plain text to token ids.

    `pieces` maps the text of each token that may result to its id; `scores` are by id. A character that is no piece is
    encoded in bytes, byte b as `byte_ids[b]`, or as `unknown_id` if one of its bytes has no token."""

    def __init__(
        self,
        pieces: Mapping[str, int],
        scores: Sequence[float],
        byte_ids: Sequence[int | None],
        unknown_id: int | None,
    ) -> None:
        self.pieces, self.scores, self.byte_ids, self.unknown_id = pieces, scores, byte_ids, unknown_id

    def __call__(self, text: str) -> list[int]:
        """Encode plain text. Raises PromptError for a character that the vocabulary cannot express."""
        text = text.replace(" ", SPACE)
        ids: list[int] = []
        start = 0
        for size in self.merge(text):
            piece = text[start : start + size]
            known = self.pieces.get(piece)
            ids += self.spell(piece) if known is None else [known]
            start += size
        return ids

    def merge(self, text: str) -> list[int]:
        """Merge `text` into pieces; return their lengths from left to right."""
        n = len(text)
        size = [1] * n  # of the piece that starts at this index; 0 if none does
        before = list(range(-1, n - 1))  # start of the piece to the left of the one that starts at this index
        queue = [pair for i in range(n - 1) if (pair := self.pair(text, i, i + 1, i + 2))]
        heapify(queue)
        while queue:
            _, left, right, end = heappop(queue)
            if not size[left] or left + size[left] != right or right + size[right] != end or not size[right]:
                continue  # one of the two pieces has been merged since
            size[left], size[right] = end - left, 0
            if end < n:
                before[end] = left
                if pair := self.pair(text, left, end, end + size[end]):
                    heappush(queue, pair)
            if before[left] >= 0 and (pair := self.pair(text, before[left], left, end)):
                heappush(queue, pair)
        return [s for s in size if s]

    def pair(self, text: str, left: int, right: int, end: int) -> tuple[float, int, int, int] | None:
        """Return the queue's entry for text[left:right] + text[right:end], or None if that is not a piece."""
        known = self.pieces.get(text[left:end])
        return None if known is None else (-self.scores[known], left, right, end)

    def spell(self, character: str) -> list[int]:
        """Encode a character that is not a piece, as bytes or the unknown token. Raises PromptError without either."""
        ids = [self.byte_ids[b] for b in character.encode()]
        known = [i for i in ids if i is not None]
        if len(known) == len(ids):
            return known
        if self.unknown_id is None:
            raise PromptError("text", "tokens", f"the vocabulary has no token for {character!r} or for its bytes")
        return [self.unknown_id]
