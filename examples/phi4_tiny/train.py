"""Train phi4-tiny from nothing: ``python train.py --work DIR`` runs every stage, or resumes.

Stages save to ``DIR/parts``; the finished model goes to ``DIR/checkpoint`` in the published
layout. ``--stages`` runs some of them, ``--threads`` sets PyTorch's threads. ``--again STAGE``
reopens a finished stage (raise its steps first) and drops what was built on it.
"""

import argparse
import importlib
import random
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and weights")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", choices=list(STAGES), help="reopen a finished stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if options.again:
        again(options.work, options.again)
    for stage in options.stages:
        torch.manual_seed(options.seed)
        np.random.seed(options.seed)
        random.seed(options.seed)
        module, function = STAGES[stage].split(":")
        getattr(importlib.import_module(module), function)(options.work, tokenizer.build())


if __name__ == "__main__":
    main()
