"""Train the model, with a checkpoint and a log. Training stops at the time in RUN/stop_at (seconds since 1970).

    python -m training.train RUN [--start FOLDER | --resume] [--minutes 110] ...

The learning rate is constant, and falls to zero over the last `--anneal` minutes before the stop time. You may change
that time during the run.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from llava_ref import embedded

from .data import Batch, make_batch, work
from .export import load_pair
from .model import ShapesConfig, ShapesModel
from .muon import Muon
from .packing import make_packer

TRAIN_SEED, CHECK_SEED = 1, 2
BATCH = 32


class Optimiser:
    """Muon for the matrices of the blocks and the projector, Adam for everything else."""

    def __init__(self, model: ShapesModel) -> None:
        matrices, rest = [], []
        for name, p in model.named_parameters():
            (matrices if p.ndim == 2 and ("blocks" in name or name.startswith("mm")) else rest).append(p)
        self.muon = Muon(matrices)
        self.adam = torch.optim.Adam(rest, betas=(0.9, 0.98), eps=1e-10)

    def step(self, scale: float, muon_lr: float, adam_lr: float) -> None:
        """Update all parameters."""
        self.muon.step(muon_lr * scale)
        self.adam.param_groups[0]["lr"] = adam_lr * scale
        self.adam.step()


def answer_loss(model: ShapesModel, b: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over answer tokens, and whether each is right, (B, A)."""
    logits = model.answer_logits(hidden, b.ids, b.patches, b.positions, b.segments, b.where)
    loss = F.cross_entropy(logits.flatten(0, 1), b.answers.flatten(), ignore_index=-100)
    return loss, logits.argmax(-1) == b.answers


def whole_answers(b: Batch, right: Tensor) -> list[tuple[str, bool]]:
    """Return the kind of each question, and whether every token of its answer is right, as in greedy decoding."""
    out = []
    for kinds, answers, groups, hits in zip(b.kinds, b.answers, b.groups, right, strict=True):
        real = answers >= 0
        wrong = set(groups[real & ~hits].tolist())
        out += [(kinds[g], g not in wrong) for g in sorted(set(groups[real].tolist()))]
    return out


@torch.no_grad()
def check(model: ShapesModel, batches: list[Batch], joint: bool) -> dict[str, float]:
    """Measure the held-out accuracy of patch labels, and of whole answers by kind."""
    asked, hits, labels = Counter[str](), Counter[str](), Counter[str]()
    for b in batches:
        hidden = model.tower(b.pixels)
        labels.update(model.tower.accuracies(hidden, b.labels))
        if joint:
            for kind, ok in whole_answers(b, answer_loss(model, b, hidden)[1]):
                for key in (kind, "all"):
                    asked[key] += 1
                    hits[key] += ok
    out = {f"patch {k}": v / len(batches) for k, v in labels.items()}
    return out | {k: hits[k] / asked[k] for k in asked}


class TrainingRun:
    """One training run in a folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, Path(args.run)
        self.packer = make_packer(args.vocabulary)
        self.model = ShapesModel(ShapesConfig())
        self.optimiser = Optimiser(self.model)
        self.step = self.pictures = 0
        if args.resume:
            state = torch.load(self.folder / "last.pt")
            self.model.load_state_dict(state["model"])
            self.step, self.pictures = state["step"], state["pictures"]
        elif args.start:
            load_pair(self.model, Path(args.start))
        self.checks = [make_batch(self.packer, CHECK_SEED, range(i * 64, i * 64 + 64)) for i in range(4)]
        self.stop_file = self.folder / "stop_at"
        self.stop_file.write_text(str(time.time() + 60 * args.minutes))
        self.began = time.time()

    def scale(self) -> float:
        """Return the factor on the learning rates: warm-up, constant, linear fall."""
        left = float(self.stop_file.read_text()) - time.time()
        warm = min((time.time() - self.began) / 30, 1.0)
        return max(min(warm, left / (60 * self.args.anneal)), 0.0)

    def start_worker(self, joint: bool) -> "tuple[mp.Process, mp.Queue[Batch]]":
        """Start the process that makes batches."""
        batches: mp.Queue[Batch] = mp.Queue(maxsize=6)
        arguments = (batches, self.args.vocabulary, TRAIN_SEED, self.pictures, BATCH, joint)
        worker = mp.Process(target=work, args=arguments, daemon=True)
        worker.start()
        return worker, batches

    def save(self) -> None:
        """Replace the checkpoint at once, so that an interruption leaves a whole one."""
        state = {"model": self.model.state_dict(), "step": self.step, "pictures": self.pictures}
        torch.save(state, self.folder / "new.pt")
        (self.folder / "new.pt").rename(self.folder / "last.pt")

    def report(self, joint: bool, losses: list[float]) -> None:
        """Append a line to the log, and save."""
        scores = {
            k: round(v, 3) for k, v in check(self.model, self.checks if joint else self.checks[:1], joint).items()
        }
        line = {"step": self.step, "pictures": self.pictures, "minutes": round((time.time() - self.began) / 60, 1)}
        line |= {"lr": round(self.scale(), 3), "loss": round(sum(losses) / len(losses), 4)} | scores
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")
        self.save()

    def train(self, joint: bool, steps: int) -> None:
        """Train for `steps` steps, or until the stop time."""
        worker, batches = self.start_worker(joint)
        losses: list[float] = []
        end = self.step + steps
        while self.step < end and (scale := self.scale()) > 0 or self.step == 0:
            b = batches.get()
            losses.append(self.one(b, joint, scale))
            self.step, self.pictures = self.step + 1, self.pictures + BATCH
            if self.step % self.args.every == 0:
                self.report(joint, losses)
                losses.clear()
        if losses:
            self.report(joint, losses)
        worker.terminate()

    def one(self, b: Batch, joint: bool, scale: float) -> float:
        """Run one step; return the loss of this stage."""
        for p in self.model.parameters():
            p.grad = None
        hidden = self.model.tower(b.pixels)
        settled = joint and self.step >= self.args.settle
        aux = self.model.tower.losses(hidden if settled or not joint else hidden.detach(), b.labels, b.counts)
        loss = answer = aux
        if joint:
            answer = answer_loss(self.model, b, hidden)[0]
            loss = answer + self.args.aux * aux
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimiser.adam.param_groups[0]["params"], 1.0)
        self.optimiser.step(scale, self.args.muon_lr, self.args.adam_lr)
        return answer.item()


def main() -> None:
    """Train the tower, then everything together."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("run", help="folder for checkpoints and the log")
    p.add_argument("--minutes", type=float, default=110)
    p.add_argument("--anneal", type=float, default=65)
    p.add_argument("--tower-steps", type=int, default=0)
    p.add_argument("--settle", type=int, default=200, help="steps in which the heads learn and the tower does not")
    p.add_argument("--start", help="folder of a pair to start from (default: random weights)")
    p.add_argument("--vocabulary", default=str(embedded()[0]), help="GGUF file with the vocabulary")
    p.add_argument("--every", type=int, default=100)
    p.add_argument("--aux", type=float, default=0.3)
    p.add_argument("--muon-lr", type=float, default=0.01)
    p.add_argument("--adam-lr", type=float, default=1e-3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--resume", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    run = TrainingRun(args)
    if run.step < args.tower_steps:
        run.train(joint=False, steps=args.tower_steps - run.step)
    run.train(joint=True, steps=10**9)


if __name__ == "__main__":
    main()
