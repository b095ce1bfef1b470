"""Runs many clients at once for minutes; checks that answers equal those of a single client and memory does not grow.

    python -m tests.api.crowd --clients 8 --minutes 5
    python -m tests.api.crowd --minutes 5 --model TEXT.gguf --precision fast --threads 2

Without `--model` it is the embedded pair and its pictures, else texts. First every request is sent alone, a few times
over. Prints the number of answers and the server's memory, descriptors and threads after each tenth of the time. The
last line is JSON, with throughput and latency. Exit code 1 if an answer differed, or if the server grew by more than 5%
after the first tenth.
"""

import argparse
import json
import sys
import threading
import time
from itertools import count
from pathlib import Path

import httpx2

from .running import PICTURES, Process, data_uri

SHOWN = json.loads((PICTURES / "pictures.json").read_text())


def shown():
    """Return request bodies of different lengths and kinds, about pictures."""
    bodies = []
    for i, picture in enumerate(SHOWN):
        url = data_uri((PICTURES / picture["file"]).read_bytes())
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": picture["question"]}]
        sampled = {"temperature": 1.0, "seed": i, "max_tokens": 20} if i % 2 else {}
        bodies.append({"messages": [{"role": "user", "content": content}], **sampled})
    return bodies


def texts(max_tokens):
    """Return request bodies of different lengths and kinds, without pictures."""
    bodies = []
    for i, name in enumerate(["rivers", "mountains", "bread", "clocks", "paper", "bees", "salt", "bridges"]):
        content = " ".join([f"Remember the number {i * n}." for n in range(4 * i)] + [f"Tell me about {name}."])
        sampled = {"temperature": 0.8, "seed": i} if i % 2 else {}
        scored = {"logprobs": True, "top_logprobs": 2} if i % 4 == 2 else {}
        size = max_tokens * (2 + i % 3) // 4
        bodies.append({"messages": [{"role": "user", "content": content}], "max_tokens": size, **sampled, **scored})
    return bodies


def size(pid):
    """Return resident bytes, descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]) * 1024, descriptors, int(status["Threads"])


class Crowd:
    """Clients that send requests until `over` is set."""

    def __init__(self, url, bodies, expected):
        self.url, self.bodies, self.expected = url, bodies, expected
        self.numbers, self.over = count(), threading.Event()
        self.seconds, self.wrong, self.busy, self.tokens = [], [], 0, 0

    def ask(self):
        with httpx2.Client(base_url=self.url, timeout=600) as client:
            while not self.over.is_set():
                i = next(self.numbers) % len(self.bodies)
                began = time.monotonic()
                answer = client.post("/v1/chat/completions", json=self.bodies[i])
                if answer.status_code == 429:
                    self.busy += 1
                    time.sleep(0.05)
                    continue
                self.seconds.append(time.monotonic() - began)
                self.tokens += answer.json().get("usage", {}).get("completion_tokens", 0)
                if choices(answer) != self.expected[i]:
                    self.wrong.append((i, answer.text))


def choices(answer):
    """Return the text, and every log-probability where they were asked for."""
    return answer.json()["choices"] if answer.status_code == 200 else answer.text


def one_by_one(url, bodies, repeated):
    """Send each request alone, `repeated` times over; return the answers, and the tokens a second of the last time."""
    with httpx2.Client(base_url=url, timeout=600) as client:
        for _ in range(repeated):
            began = time.monotonic()
            answers = [client.post("/v1/chat/completions", json=body) for body in bodies]
            seconds = time.monotonic() - began
    return [choices(answer) for answer in answers], sum(
        answer.json()["usage"]["completion_tokens"] for answer in answers
    ) / seconds


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--model")
    parser.add_argument("--precision", default="exact")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--max-tokens", type=int, default=64)
    return parser.parse_args()


def main():
    args = arguments()
    options = ["--precision", args.precision, *(["--model", args.model] if args.model else [])]
    with Process(*options, threads=args.threads) as server:
        bodies = texts(args.max_tokens) if args.model else shown()
        expected, args.alone = one_by_one(server.url, bodies, 2)
        crowd = Crowd(server.url, bodies, expected)
        threads = [threading.Thread(target=crowd.ask) for _ in range(args.clients)]
        for thread in threads:
            thread.start()
        sizes = []
        for tenth in range(10):
            time.sleep(args.minutes * 6)
            sizes.append(size(server.process.pid))
            print(f"{tenth + 1:2}/10  {len(crowd.seconds):6} answers  {sizes[-1][0] / 2**20:.1f} MiB  {sizes[-1][1:]}")
        crowd.over.set()
        for thread in threads:
            thread.join()
    return report(crowd, sizes, args)


def report(crowd, sizes, args):
    seconds = sorted(crowd.seconds)
    result = {
        "clients": args.clients,
        "answers": len(seconds),
        "answers_s": round(len(seconds) / (args.minutes * 60), 2),
        "tokens_s": round(crowd.tokens / (args.minutes * 60), 1),
        "tokens_s_alone": round(args.alone, 1),
        "p50_s": round(seconds[len(seconds) // 2], 4),
        "p95_s": round(seconds[len(seconds) * 95 // 100], 4),
        "busy": crowd.busy,
        "wrong": len(crowd.wrong),
        "rss_mib": [round(rss / 2**20, 1) for rss, _, _ in sizes],
        "descriptors": sizes[-1][1],
        "threads": sizes[-1][2],
    }
    print(json.dumps(result))
    grown = any(last > first * 1.05 + 2 for first, last in zip(sizes[0], sizes[-1], strict=True))
    return int(bool(crowd.wrong) or grown)


if __name__ == "__main__":
    sys.exit(main())
