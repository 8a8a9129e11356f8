"""Stage (b), second half: pictures meet the language model.

The encoder is frozen, so its features are computed once. Then the projector and the separators
are trained, then these with the vision LoRA.
"""

import random
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tokenizer
import torch
from data_pictures import question, scene
from packing import exact_answers, pack, packed_loss, picture_tokens
from quantization import quantized
from tokenizer import ASSISTANT, END, IMAGE, USER
from training import Trainer, answer_ids, current_model, done, keep, keep_part, log, named, use
from transformers.models.phi4_multimodal import Phi4MultimodalImageProcessor
from vision_encoder import PATCH, encode, grid_positions

PICTURES, HELD_OUT_PICTURES = 6000, 200
PARTS = 2  # processes that draw and encode them
PROJECTOR_STEPS, LORA_STEPS, BATCH, QUESTIONS = 100, 2700, 6, 4
ROW_END, GLOBAL_START = 1, 2


def layout(features, sizes, mask):
    """One picture's tokens in the reference's order, and where its separators stand.

    ``features`` (C, 16, 16, D): global view, then crops; ``sizes`` height and width in pixels;
    ``mask`` (C, 32, 32). Returns (n, D), zero at separators, and (n,) uint8.
    """
    rows, columns = (int(s) // 448 for s in sizes)
    crops = features[1 : 1 + rows * columns].view(rows, columns, 16, 16, -1)
    grid = crops.transpose(1, 2).reshape(16 * rows, 16 * columns, -1)
    kept = mask[1 : 1 + rows * columns, ::2, ::2].view(rows, columns, 16, 16)
    kept = kept.transpose(1, 2).reshape(16 * rows, 16 * columns)
    grid = grid[: int(kept[:, 0].sum()), : int(kept[0].sum())]

    def ended(view):
        marks = torch.zeros(view.shape[0], view.shape[1] + 1, dtype=torch.uint8)
        marks[:, -1] = ROW_END
        view = torch.nn.functional.pad(view, (0, 0, 0, 1))
        return view.flatten(0, 1), marks.flatten()

    (crop, crop_marks), (whole, whole_marks) = ended(grid), ended(features[0])
    start = torch.tensor([GLOBAL_START], dtype=torch.uint8)
    tokens = torch.cat([crop, torch.zeros(1, crop.shape[1]), whole])
    return tokens, torch.cat([crop_marks, start, whole_marks])


def crop_features(tower, pixels, mask):
    """Pooled features (16, 16, D) of one crop; cells of padding alone stay zero (they are cut).

    Padding is masked, so leaving it out changes nothing but the time it takes.
    """
    kept = int(mask[:, 0].sum()), int(mask[0].sum())
    rows, columns = (n + n % 2 for n in kept)  # a pooled cell may be half padding
    view = pixels[None, :, : rows * PATCH, : columns * PATCH]
    positions = grid_positions(*kept)[:rows, :columns].reshape(1, -1)
    keep = mask[:rows, :columns].reshape(1, -1)
    # with no mask at all, Transformers would take this attention for a causal one
    found = encode(tower, view, positions, keep)[0].float()
    features = torch.zeros(16, 16, found.shape[-1])
    features[: found.shape[0], : found.shape[1]] = found
    return features


def features_of(tower, processor, picture):
    """Frozen features of one PIL picture in layout order; see ``layout``."""
    inputs = processor(images=picture, return_tensors="pt")
    pixels, mask = inputs["image_pixel_values"][0], inputs["image_attention_mask"][0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = torch.stack([crop_features(tower, p, m.bool()) for p, m in zip(pixels, mask, strict=True)])
    tokens, marks = layout(features, inputs["image_sizes"][0], mask)
    assert len(tokens) == int(inputs["num_img_tokens"][0])
    return tokens.bfloat16(), marks


def encoded(work, name, count, held_out):
    """Draw ``count`` pictures and encode them; ``name`` seeds the drawing. One process's work."""
    torch.set_num_threads(1)
    tower = current_model(work, tokenizer.build()).model.embed_tokens_extend.image_embed.img_processor
    processor, rng, found = Phi4MultimodalImageProcessor(), random.Random(f"{name} 0"), []
    for _ in range(count):
        drawn = scene(rng, held_out)
        # as arrays: a process gives tensors back through shared memory, a file for each
        token, mark = features_of(tower, processor, drawn.picture)
        found.append((token.float().numpy(), mark.numpy(), drawn.facts))
    return found


def pictures(work, held_out=False):
    """Features, separators and facts of every picture: computed once, by several processes, and kept."""
    file = Path(work) / ("pictures_held_out.pt" if held_out else "pictures.pt")
    if not file.exists():
        share = (HELD_OUT_PICTURES if held_out else PICTURES) // PARTS
        calls = [(work, f"{file.stem} {part}", share, held_out) for part in range(PARTS)]
        with get_context("spawn").Pool(PARTS) as pool:
            found = [each for part in pool.starmap(encoded, calls) for each in part]
        tokens, marks, facts = zip(*found, strict=True)
        tokens = [torch.from_numpy(token).bfloat16() for token in tokens]
        keep({"tokens": tokens, "marks": [*map(torch.from_numpy, marks)], "facts": list(facts)}, file)
    data = torch.load(file)
    return data["tokens"], data["marks"], data["facts"]


def run_cache(work, tokenizer):
    """Draw and encode all pictures."""
    for held_out in (True, False):
        pictures(work, held_out)


def kinds(facts):
    """The kinds of question a picture answers."""
    return [*facts, *(["both"] if "color" in facts else [])]


def picture_row(tokenizer, count, facts, rng, most=QUESTIONS):
    """One packed row: a picture of ``count`` tokens, then up to ``most`` questions about it."""
    parts = []
    asked = kinds(facts)
    for kind in rng.sample(asked, min(most, len(asked))):
        text, answer = question(rng, facts, kind)
        parts.append((tokenizer.encode(text + END + ASSISTANT).ids, answer_ids(tokenizer, answer)))
    return tokenizer.encode(USER + IMAGE * count).ids, parts


def stretch(rng, order, count, spread=200):
    """``count`` random members of a random stretch of ``order``: pictures of similar length."""
    start = rng.randrange(len(order) - spread + 1)
    return rng.sample(order[start : start + spread], count)


def check(work, model, tokenizer):
    """Share of exact answers about the held-out pictures, by kind of question, and at 4 bits."""
    tokens, marks, facts = pictures(work, held_out=True)
    rng, image = random.Random(7), model.model.embed_tokens_extend.image_embed
    rows = [picture_row(tokenizer, len(t), f, rng, most=9)
            for t, f in zip(tokens, facts, strict=True)]  # fmt: skip
    rng, asked = random.Random(7), []
    for f in facts:  # the same draws again, for the kinds in order
        order = rng.sample(kinds(f), len(kinds(f)))
        asked += order
        for kind in order:
            question(rng, f, kind)
    use(model, "vision")
    result = {}
    for name, active in (("pictures", False), ("pictures_4bit", True)):
        right = []
        for i in range(0, len(rows), 20):
            with quantized(model, active), torch.no_grad():
                some = zip(tokens[i : i + 20], marks[i : i + 20], strict=True)
                put = [picture_tokens(image, token, mark) for token, mark in some]
                batch = pack(tokenizer, rows[i : i + 20])
                right += exact_answers(model, tokenizer, batch, pictures=torch.cat(put))
        result[name] = round(float(np.mean(right)), 4)
        if not active:
            for kind in ("number", "word", "color", "shape", "both"):
                hits = [r for r, a in zip(right, asked, strict=True) if a == kind]
                result[kind] = round(float(np.mean(hits)), 3)
    return result


def run_language(work, tokenizer):
    """Projector and separators, then these and the vision LoRA."""
    if done(work, "3_read"):
        return
    model = current_model(work, tokenizer)
    tokens, marks, facts = pictures(work)
    image = model.model.embed_tokens_extend.image_embed
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))

    def step_loss(step, rng):
        use(model, "vision")
        picked = stretch(rng, order, BATCH)
        rows = [picture_row(tokenizer, len(tokens[i]), facts[i], rng) for i in picked]
        put = picture_tokens(image, torch.cat([tokens[i] for i in picked]), torch.cat([marks[i] for i in picked]))
        return packed_loss(model, tokenizer, pack(tokenizer, rows), pictures=put)

    projector = named(model, "img_projection_", "img_feature_extensor")
    both = [*projector, *named(model, "lora_A.vision.", "lora_B.vision.")]
    first = Trainer(work, "3_vision_projector", model, projector, PROJECTOR_STEPS, 2e-3)
    first.run(step_loss, every=50, check=lambda: check(work, model, tokenizer))
    second = Trainer(work, "3_vision_lora", model, both, LORA_STEPS, 1.5e-3, noisy=0.5)
    second.run(step_loss, every=50, check=lambda: check(work, model, tokenizer))
    log(work, "3_read", seconds=round(first.seconds + second.seconds))
    keep_part(work, "3_read", model, [n for n, _ in both])
