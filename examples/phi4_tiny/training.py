"""What all stages share: batches with answers as targets, one optimizer step, saving, resuming."""

import json
import math
import random
import time
from pathlib import Path

import torch
from modeling import build, route
from quantization import quantized
from tokenizer import END, prompt_ids
from torch.nn import functional as F

SAVE_EVERY = 60  # seconds


def log(work, stage, **values):
    """Print one line and append it to ``work/log.jsonl``."""
    line = {"stage": stage, **values}
    print(json.dumps(line), flush=True)
    with (Path(work) / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def current_model(work, tokenizer):
    """The model with everything trained so far (``work/parts/*.pt``, one file per stage)."""
    model = build(tokenizer.get_vocab())
    for part in sorted((Path(work) / "parts").glob("*.pt")):
        model.load_state_dict(torch.load(part), strict=False)
    return model


def keep(value, file):
    """Write ``value`` beside ``file`` and rename it: another stage may look for it, and a run may be stopped."""
    torch.save(value, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file)


def keep_part(work, name, model, parameters):
    """Write a finished stage's tensors (a list of names) to ``work/parts/name.pt``."""
    state = model.state_dict()
    folder = Path(work) / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    keep({key: state[key].clone() for key in parameters}, folder / f"{name}.pt")


def done(work, name):
    """Whether a stage has finished before."""
    return (Path(work) / "parts" / f"{name}.pt").exists()


def answer_ids(tokenizer, answer):
    """The target tokens of an answer, its end included."""
    return tokenizer.encode(answer + END).ids


def text_batch(tokenizer, items, device="cpu"):
    """Right-padded ``ids`` and ``targets`` (B, L); targets are -100 off the answer."""
    rows = []
    for system, question, answer in items:
        prompt = prompt_ids(tokenizer, question, system=system)
        rows.append((prompt, answer_ids(tokenizer, answer)))
    length = max(len(p) + len(a) for p, a in rows)
    pad = tokenizer.token_to_id(END)
    ids = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), -100)
    for i, (prompt, answer) in enumerate(rows):
        full = torch.tensor(prompt + answer)
        ids[i, : len(full)] = full
        # the target at a position is the next token
        targets[i, len(prompt) - 1 : len(full) - 1] = torch.tensor(answer)
    return ids.to(device), targets.to(device)


def answer_loss(model, hidden, targets):
    """Cross entropy of the tied head on the positions that have a target."""
    picked = targets != -100
    logits = F.linear(hidden[picked], model.model.embed_tokens.weight)
    hits = (logits.argmax(-1) == targets[picked]).float().mean()
    return F.cross_entropy(logits.float(), targets[picked]), hits


class Trainer:
    """AdamW with warm-up and cosine decay, bfloat16 products, saving and resuming.

    ``parameters`` are (name, tensor) pairs; all else is frozen. ``step_loss(step, rng)`` returns
    (loss, accuracy); ``rng`` depends on the seed and the step alone, so that a resumed run sees
    the same data. ``noisy`` is the share of steps that see the 4-bit rounded base.
    """

    def __init__(self, work, name, model, parameters, steps, lr, noisy=0.0, warmup=50, decay=0.01):
        self.work, self.name, self.model, self.steps = work, name, model, steps
        self.lr, self.noisy, self.warmup = lr, noisy, warmup
        self.parameters = dict(parameters)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
        self.file = Path(work) / "running" / f"{name}.pt"
        self.step, self.seconds = 0, 0.0
        if self.file.exists():
            self.resume()

    def resume(self):
        state = torch.load(self.file)
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "parameters": {k: p.detach() for k, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        keep(state, self.file)

    def rate(self):
        """Learning rate of this step: linear warm-up, then cosine to 2 % of the peak."""
        if self.step < self.warmup:
            return self.lr * (self.step + 1) / self.warmup
        share = (self.step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(share * math.pi)))

    def one_step(self, step_loss):
        rng = random.Random(f"{self.name} {self.step}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with quantized(self.model, active=rng.random() < self.noisy):
            with torch.autocast("cpu", torch.bfloat16):
                loss, accuracy = step_loss(self.step, rng)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), float(accuracy)

    def run(self, step_loss, every=100, check=None):
        """Train to the end; ``check()`` returns held-out numbers for the log."""
        last_save = start = time.time()
        before = self.seconds
        total, count, fresh = torch.zeros(2), 0, self.step < self.steps
        while self.step < self.steps:
            self.model.train()
            total += torch.tensor(self.one_step(step_loss))
            count += 1
            self.step += 1
            self.seconds = before + time.time() - start
            if self.step % every == 0 or self.step == self.steps:
                loss, accuracy = (total / count).tolist()
                total, count = torch.zeros(2), 0
                log(self.work, self.name, step=self.step, loss=round(loss, 4),
                    accuracy=round(accuracy, 4), seconds=round(self.seconds))  # fmt: skip
            if time.time() - last_save > SAVE_EVERY or self.step == self.steps:
                self.save()
                last_save = time.time()
        self.model.eval()
        if check and fresh:
            log(self.work, self.name, step=self.step, seconds=round(self.seconds), **check())


def additive(seen):
    """A mask of visible keys as scores to add: 0 or -1e9, in the dtype attention runs in."""
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -1e9)


def named(model, *fragments):
    """(name, parameter) pairs whose name contains one of the fragments."""
    return [(n, p) for n, p in model.named_parameters() if any(f in n for f in fragments)]


@torch.no_grad()
def greedy(model, ids, limit=40, stops=(), **media):
    """Greedy continuation of one prompt (list of ids) by the reference.

    ``media`` are the reference's own keyword arguments for pictures and sound.
    """
    inputs, cache, new = torch.tensor([ids]), None, []
    for _ in range(limit):
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True, **media)
        cache, media = out.past_key_values, {}
        token = int(out.logits[0, -1].argmax())
        if token in stops:
            break
        new.append(token)
        inputs = torch.tensor([[token]])
    return new


@torch.no_grad()
def teacher_forced(model, hidden, targets):
    """Rows whose every target is the head's first choice: exact answers under greedy decoding."""
    best = F.linear(hidden, model.model.embed_tokens.weight).argmax(-1)
    return ((best == targets) | (targets == -100)).all(-1)


def use(model, adapter):
    """Route, and return the model, for one-line calls."""
    route(model, adapter)
    return model
