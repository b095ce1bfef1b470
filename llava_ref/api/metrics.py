"""Counters of the server, and their page in Prometheus' text format 0.0.4."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from ..generation.answer import Stream

HELP = {
    "llava_ref_requests_total": "HTTP requests answered, by route and status",
    "llava_ref_prompt_tokens_total": "Prompt positions, pictures included",
    "llava_ref_image_tokens_total": "Prompt positions of pictures",
    "llava_ref_completion_tokens_total": "Tokens generated",
    "llava_ref_encode_seconds_total": "Seconds in the vision tower",
    "llava_ref_prefill_seconds_total": "Seconds in the forward passes of prompts (prefill)",
    "llava_ref_decode_seconds_total": "Seconds in the forward passes of generated tokens (decode), summed over answers",
    "llava_ref_cancelled_total": "Answers that ended early because the client disconnected",
}


class Metrics:
    """Counts requests, tokens and seconds since the start of the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.active = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._sums: dict[str, float] = dict.fromkeys(list(HELP)[1:], 0)

    def request(self, route: str, status: int) -> None:
        with self._lock:
            self._requests[route, status] += 1

    def answered(self, streams: Iterable[Stream]) -> None:
        """Count the tokens and times of these answers, finished or cancelled."""
        for reply in (stream.reply for stream in streams):
            if reply.token_ids:
                prompt, times = reply.usage["prompt_tokens_details"], reply.timings
                with self._lock:
                    self._add("prompt_tokens", reply.usage["prompt_tokens"])
                    self._add("image_tokens", prompt["image_tokens"])
                    self._add("completion_tokens", len(reply.token_ids))
                    for stage in ("encode", "prefill", "decode"):
                        self._add(f"{stage}_seconds", times[f"{stage}_s"] or 0.0)
                    if reply.finish_reason is None:
                        self._add("cancelled", 1)

    def _add(self, name: str, count: float) -> None:
        self._sums[f"llava_ref_{name}_total"] += count

    def page(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return all metrics as text. `gauges`: name -> (help, current value)."""
        with self._lock:
            requests, sums = dict(self._requests), dict(self._sums)
        lines = _described("llava_ref_requests_total", HELP["llava_ref_requests_total"], "counter")
        for (route, status), count in sorted(requests.items()):
            lines.append(f'llava_ref_requests_total{{route="{route}",status="{status}"}} {count}')
        for name, total in sums.items():
            lines += [*_described(name, HELP[name], "counter"), f"{name} {total:g}"]
        for name, (about, value) in gauges.items():
            lines += [*_described(name, about, "gauge"), f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _described(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
