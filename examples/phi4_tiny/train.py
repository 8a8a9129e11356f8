"""Train phi4-tiny from nothing: ``python train.py --work DIR`` runs every stage, or resumes.

Stages save to ``DIR/parts``; the finished model goes to ``DIR/checkpoint`` in the published
layout. Two stages that do not need each other run side by side, each in a process of one thread, so
that the numbers do not depend on how many cores there are. ``--stages`` runs some of them, one after
another. ``--again STAGE`` reopens a finished stage (raise its steps first) and drops what was built on it.
"""

import argparse
import importlib
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tokenizer
import torch

STAGES = {
    "text": "train_text:run",
    "see": "vision_encoder:run",
    "pictures": "train_vision:run_cache",
    "read": "train_vision:run_language",
    "record": "train_speech:run_recordings",
    "hear": "train_speech:run_encoder",
    "transcribe": "train_speech:run_language",
    "joint": "train_joint:run",
    "save": "train_joint:save",
}

# what a stage needs; of those that may begin the first in this order do
NEEDS = {
    "see": [], "text": [], "record": [], "hear": ["record"], "pictures": ["see"],
    "transcribe": ["text", "hear"], "read": ["text", "pictures"], "joint": ["read", "transcribe"], "save": ["joint"],
}  # fmt: skip
# what a stage leaves in the work folder, and which stages build on it
LEFT = {
    "text": ["parts/1_*"], "see": ["parts/2_*"], "pictures": ["pictures*.pt"],
    "read": ["parts/3_*"], "record": ["clips*.pt"], "hear": ["parts/4_*"],
    "transcribe": ["heard*.pt", "parts/5_*"], "joint": ["parts/6_*"], "save": [],
}  # fmt: skip
LATER = {
    "text": ["read", "transcribe", "joint"], "see": ["pictures", "read", "joint"],
    "pictures": ["read", "joint"], "read": ["joint"], "record": ["hear", "transcribe", "joint"],
    "hear": ["transcribe", "joint"], "transcribe": ["joint"], "joint": [], "save": [],
}  # fmt: skip


def again(work, stage):
    """Reopen a finished stage: it goes on if its steps were raised; what builds on it starts anew.

    The state of its optimizer stays, so nothing trained is lost; later stages lose everything.
    """
    patterns = list(LEFT[stage])
    for later in LATER[stage]:
        patterns += [*LEFT[later], *(p.replace("parts/", "running/") for p in LEFT[later])]
    for pattern in patterns:
        for file in work.glob(pattern):
            file.unlink()


def side_by_side(work, seed, processes=2):
    """Run every stage, each as soon as what it needs is done. A stage that was done before ends at once."""
    done, running, waiting = set(), {}, list(NEEDS)
    command = [sys.executable, __file__, "--work", str(work), "--seed", str(seed), "--stages"]
    try:
        while waiting or running:
            ready = [stage for stage in waiting if done.issuperset(NEEDS[stage])]
            for stage in ready[: processes - len(running)]:
                waiting.remove(stage)
                running[stage] = subprocess.Popen([*command, stage])
            time.sleep(1)
            for stage in [stage for stage, process in running.items() if process.poll() is not None]:
                if running.pop(stage).returncode:
                    sys.exit(f"{stage} failed; mended, the same command goes on from here")
                done.add(stage)
    finally:
        for process in running.values():
            process.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and weights")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), help="only these, one after another")
    parser.add_argument("--again", choices=list(STAGES), help="reopen a finished stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.again:
        again(options.work, options.again)
    if not options.stages:
        side_by_side(options.work, options.seed)
    for stage in options.stages or ():
        torch.manual_seed(options.seed)
        np.random.seed(options.seed)
        random.seed(options.seed)
        module, function = STAGES[stage].split(":")
        getattr(importlib.import_module(module), function)(options.work, tokenizer.build())


if __name__ == "__main__":
    main()
