"""Stage (d): a spoken question about a picture, and the finished checkpoint.

First the ``vision`` audio projector alone is trained; adapters, encoders and the other projectors
stay as they are. Where that misses the goal, the vision LoRA is tuned too, with picture questions
in writing mixed in, as the report's joint stage does.
"""

import random
from pathlib import Path

import numpy as np
import torch
from data_pictures import question
from data_text import answer_about
from modeling import save_layout1
from packing import exact_answers, pack, packed_loss, picture_tokens, sound_tokens
from quantization import quantized
from tokenizer import ASSISTANT, AUDIO, END, IMAGE, USER
from train_speech import heard
from train_vision import check as check_pictures
from train_vision import kinds, pictures, stretch
from training import Trainer, answer_ids, current_model, done, keep_part, log, named, use
from vocabulary import PICTURE_QUESTIONS, spoken

GOAL = 0.90  # share of exact answers on held-out items below which the LoRA is tuned too
PROJECTOR_STEPS, LORA_STEPS, BATCH, QUESTIONS = 200, 800, 6, 4
SHORT_TEXT = "Answer the question."
KIND_OF = {spoken(q): kind for kind, asked in PICTURE_QUESTIONS.items() for q in asked}


def spoken_questions(texts):
    """kind of question -> indices of the clips that ask it."""
    found = {kind: [] for kind in PICTURE_QUESTIONS}
    for i, text in enumerate(texts):
        if text in KIND_OF:
            found[KIND_OF[text]].append(i)
    return found


class Joint:
    """Cached pictures and spoken questions, drawn together at random."""

    def __init__(self, work, model, tokenizer, held_out=False):
        self.model, self.tokenizer = model, tokenizer
        self.tokens, self.marks, self.facts = pictures(work, held_out)
        self.states, texts = heard(work, model, held_out)
        self.clips = spoken_questions(texts)
        self.order = sorted(range(len(self.tokens)), key=lambda i: len(self.tokens[i]))

    def row(self, i, rng, most, written=0.0):
        """One packed row and the clips in it; a share of the questions is ``written`` instead."""
        parts, used, facts = [], [], self.facts[i]
        for kind in rng.sample(kinds(facts), min(most, len(kinds(facts)))):
            if rng.random() < written or not self.clips[kind]:
                head = question(rng, facts, kind)[0]
            else:
                used.append(rng.choice(self.clips[kind]))
                text = SHORT_TEXT if rng.random() < 0.2 else ""
                head = AUDIO * len(self.states[used[-1]]) + text
            asked = self.tokenizer.encode(head + END + ASSISTANT).ids
            parts.append((asked, answer_ids(self.tokenizer, answer_about(facts, kind))))
        return (self.tokenizer.encode(USER + IMAGE * len(self.tokens[i])).ids, parts), used

    def batch(self, picked, rng, most=QUESTIONS, written=0.0):
        """Packed batch, and the projected media for it."""
        extend = self.model.model.embed_tokens_extend
        rows, used = zip(*(self.row(i, rng, most, written) for i in picked), strict=True)
        clips = [self.states[c] for row in used for c in row]
        put = picture_tokens(
            extend.image_embed,
            torch.cat([self.tokens[i] for i in picked]),
            torch.cat([self.marks[i] for i in picked]),
        )
        media = {"pictures": put}
        if clips:
            media["sounds"] = sound_tokens(extend.audio_embed, torch.cat(clips), "vision")
        return pack(self.tokenizer, rows), media


def check(work, model, tokenizer):
    """Exact answers to spoken questions about held-out pictures, plain and at 4 bits."""
    data, result = Joint(work, model, tokenizer, held_out=True), {}
    use(model, "vision")
    for name, active in (("joint", False), ("joint_4bit", True)):
        rng, right = random.Random(9), []
        for i in range(0, len(data.tokens), 20):
            with quantized(model, active), torch.no_grad():
                batch, media = data.batch(range(i, min(i + 20, len(data.tokens))), rng, most=9)
                right += exact_answers(model, tokenizer, batch, **media)
        result[name] = round(float(np.mean(right)), 4)
    return result


def run(work, tokenizer):
    """The ``vision`` audio projector; the vision LoRA only where that is not enough."""
    if done(work, "6_joint"):
        return
    model = current_model(work, tokenizer)
    data = Joint(work, model, tokenizer)
    projector = named(model, "proj_for_vision_speech.")

    def step_loss(written):
        def loss(step, rng):
            use(model, "vision")
            batch, media = data.batch(stretch(rng, data.order, BATCH), rng, written=written)
            return packed_loss(model, tokenizer, batch, **media)

        return loss

    with torch.no_grad():  # start from the projector that the language model already understands
        audio = model.model.embed_tokens_extend.audio_embed
        audio.up_proj_for_vision_speech.load_state_dict(audio.up_proj_for_speech.state_dict())
        audio.down_proj_for_vision_speech.load_state_dict(audio.down_proj_for_speech.state_dict())
    first = Trainer(work, "6_joint_projector", model, projector, PROJECTOR_STEPS, 2e-3, noisy=0.5)
    first.run(step_loss(0.0), every=50)
    reached, kept, seconds = check(work, model, tokenizer), projector, first.seconds
    log(work, "6_joint_projector", **reached)
    if min(reached.values()) < GOAL:
        log(work, "6_joint_before", **check_pictures(work, model, tokenizer))
        kept = [*projector, *named(model, "lora_A.vision.", "lora_B.vision.")]
        second = Trainer(work, "6_joint_lora", model, kept, LORA_STEPS, 7e-4, noisy=0.5)
        second.run(step_loss(0.5), every=50, check=lambda: check(work, model, tokenizer))
        log(work, "6_joint_after", **check_pictures(work, model, tokenizer))
        seconds += second.seconds
    log(work, "6_joint", seconds=round(seconds))
    keep_part(work, "6_joint", model, [n for n, _ in kept])


def save(work, tokenizer):
    """Write ``work/checkpoint`` in the published layout."""
    folder = Path(work) / "checkpoint"
    count = save_layout1(current_model(work, tokenizer), tokenizer, folder)
    size = sum(f.stat().st_size for f in folder.iterdir())
    log(work, "save", parameters=count, bytes=size)
