"""Stage (b), first half: the picture encoder's warm start, by a direct objective.

The published encoder arrives trained; this one learns glyphs first. It sees windows of 10 x 10
patches at the positions they have in a crop, then whole crops. Each pooled cell of 28 pixels says
whether the middle of a glyph or shape is in it, and if so which one, and its colour. The three
heads that say so are thrown away afterwards.
"""

import random
from pathlib import Path

import numpy as np
import torch
from data_pictures import CROP, LETTERS, dense_canvas
from modeling import VISION
from torch import nn
from torch.nn import functional as F
from training import Trainer, additive, current_model, done, keep_part, log, named
from vision_start import start_local
from vocabulary import COLORS, SHAPES

PATCH, SIDE, CELL = 14, 32, 28  # pixels, patches of a crop's side, pixels of a pooled cell
WINDOW, BATCH, WINDOW_STEPS = 10, 64, 4000
CROP_BATCH, CROP_STEPS = 4, 3200
CANVASES, HELD_OUT_CANVASES = 1600, 60
NOISE = torch.randn(5_000_000)  # drawn once: drawing costs more than the encoder's products
USED_LAYERS = VISION["num_hidden_layers"] - 1


class Heads(nn.Module):
    """What a pooled cell holds: is a middle here, which glyph or shape, which colour."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.middle = nn.Linear(width, 1)
        self.kind = nn.Linear(width, len(LETTERS) + len(SHAPES))
        self.color = nn.Linear(width, len(COLORS))

    def forward(self, x):
        x = self.norm(x)
        return self.middle(x)[..., 0], self.kind(x), self.color(x)


def encode(tower, pixels, positions, keep=None):
    """Features before the last layer, pooled 2 x 2, as the reference computes them.

    ``pixels`` (B, 3, H, W) in -1..1; ``positions`` (B, patches) ids; ``keep`` (B, patches) bool or
    None for all. Returns (B, H / 28, W / 28, D).
    """
    x = tower.embeddings.patch_embedding(pixels)
    rows, columns = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2) + tower.embeddings.position_embedding(positions)
    mask = None if keep is None else additive(keep[:, None, None, :].expand(-1, 1, x.shape[1], -1))
    for layer in tower.encoder.layers[:USED_LAYERS]:
        x = layer(x, mask)
    x = x.view(len(x), rows // 2, 2, columns // 2, 2, -1)
    return x.mean((2, 4))


def spread(kept):
    """Position along a side of each of its 32 patches, of which the first ``kept`` are kept."""
    steps = (torch.arange(SIDE) * (1.0 / torch.tensor(float(kept)))).clamp(max=1 - 1e-6)
    return torch.bucketize(steps, torch.arange(1 / SIDE, 1.0, 1 / SIDE), right=True)


def grid_positions(kept_rows, kept_columns):
    """Position ids (32, 32) of a crop with so many kept rows and columns (others: 0)."""
    grid = spread(kept_rows)[:, None] * SIDE + spread(kept_columns)[None]
    grid[kept_rows:] = 0
    grid[:, kept_columns:] = 0
    return grid


def canvases(work, held_out=False):
    """Drawn once and kept: ``pixels`` (N, 448, 448, 3) uint8 and a table of marks per canvas."""
    name = "canvases_held_out" if held_out else "canvases"
    file = Path(work) / f"{name}.npz"
    if not file.exists():
        rng = random.Random(f"{name} 0")
        count = HELD_OUT_CANVASES if held_out else CANVASES
        pixels, rows = np.zeros((count, CROP, CROP, 3), np.uint8), []
        for i in range(count):
            picture, marks = dense_canvas(rng, held_out)
            pixels[i] = np.asarray(picture)
            rows += [(i, m.x, m.y, *m.box, m.kind, m.color) for m in marks]
        beside = file.with_suffix(".tmp.npz")
        np.savez(beside, pixels=pixels, marks=np.array(rows, np.float32))
        beside.rename(file)
    with np.load(file) as data:
        marks = data["marks"]
        groups = np.split(marks[:, 1:], np.searchsorted(marks[:, 0], range(1, len(data["pixels"]))))
        return torch.from_numpy(data["pixels"]), groups


def labels(marks, left, top, width, height):
    """Cell targets of a window: middle (0, 1, or -1 unknown), kind and colour (-1 unknown)."""
    cells = np.full((3, height // CELL, width // CELL), -1, np.int64)
    cells[0] = 0
    for x, y, x0, y0, x1, y1, kind, color in marks:
        row, column = int((y - top) // CELL), int((x - left) // CELL)
        if not (0 <= row < cells.shape[1] and 0 <= column < cells.shape[2]):
            continue
        whole = min(x0 - left, y0 - top, left + width - x1, top + height - y1) >= -3
        cells[:, row, column] = (1, kind, color) if whole else (-1, -1, -1)
    return torch.from_numpy(cells)


def to_pixels(pixels, rng):
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in -1..1, with a little noise and contrast."""
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    contrast = torch.tensor([rng.uniform(0.85, 1.0) for _ in x]).view(-1, 1, 1, 1)
    start = rng.randrange(len(NOISE) - x.numel())
    noise = NOISE[start : start + x.numel()].view_as(x)
    return x * contrast + (1 - contrast) + 0.03 * rng.random() * noise


def window_batch(pixels, marks, rng):
    """Random windows: pixels, position ids, cell targets."""
    size, views, positions, cells = WINDOW * PATCH, [], [], []
    for _ in range(BATCH):
        i = rng.randrange(len(pixels))
        top, left = (CELL * rng.randrange((CROP - size) // CELL + 1) for _ in range(2))
        views.append(pixels[i, top : top + size, left : left + size])
        cells.append(labels(marks[i], left, top, size, size))
        sides = []
        for _ in range(2):
            kept = SIDE if rng.random() < 0.6 else rng.randint(WINDOW, SIDE)
            first = 2 * rng.randint(0, (kept - WINDOW) // 2)
            sides.append(spread(kept)[first : first + WINDOW])
        positions.append((sides[0][:, None] * SIDE + sides[1][None]).flatten())
    return to_pixels(torch.stack(views), rng), torch.stack(positions), torch.stack(cells)


def crop_batch(pixels, marks, rng, count):
    """Whole crops, half of them with white padding (masked, or seen as in a global view)."""
    views, positions, keeps, cells = [], [], [], []
    for _ in range(count):
        i = rng.randrange(len(pixels))
        rows, columns = (SIDE if rng.random() < 0.5 else rng.randint(WINDOW, SIDE) for _ in "rc")
        view = pixels[i].clone()
        view[rows * PATCH :], view[:, columns * PATCH :] = 255, 255
        cell = labels(marks[i], 0, 0, columns * PATCH // CELL * CELL, rows * PATCH // CELL * CELL)
        whole = torch.full((3, SIDE // 2, SIDE // 2), -1)
        whole[:, : cell.shape[1], : cell.shape[2]] = cell
        keep = torch.ones(SIDE, SIDE, dtype=torch.bool)
        if rng.random() < 0.5:  # a crop: padding is masked; otherwise a global view: it is seen
            keep[rows:], keep[:, columns:] = False, False
        else:
            whole[0][whole[0] == -1] = 0
            rows = columns = SIDE
        views.append(view)
        cells.append(whole)
        positions.append(grid_positions(rows, columns).flatten())
        keeps.append(keep.flatten())
    views = to_pixels(torch.stack(views), rng)
    return views, torch.stack(positions), torch.stack(keeps), torch.stack(cells)


def cell_loss(heads, features, cells):
    """The direct objective, and the share of marks whose kind (and colour) is right."""
    middle, kind, color = heads(features)
    known, marked, painted = cells[:, 0] >= 0, cells[:, 1] >= 0, cells[:, 2] >= 0
    loss = F.binary_cross_entropy_with_logits(
        middle[known].float(), cells[:, 0][known].float(), pos_weight=torch.tensor(4.0)
    )
    loss = loss + F.cross_entropy(kind[marked].float(), cells[:, 1][marked])
    if painted.any():
        loss = loss + 0.5 * F.cross_entropy(color[painted].float(), cells[:, 2][painted])
    right = (kind.argmax(-1) == cells[:, 1]) & (~painted | (color.argmax(-1) == cells[:, 2]))
    return loss, right[marked].float().mean(), ((middle > 0) == (cells[:, 0] == 1))[known]


def check(tower, heads, work):
    """Marks recognised on held-out whole crops, and cells rightly told marked or empty."""
    pixels, marks = canvases(work, held_out=True)
    rng, right, told = random.Random(5), [], []
    with torch.no_grad():
        for _ in range(20):
            views, positions, keep, cells = crop_batch(pixels, marks, rng, 6)
            _, accuracy, cell = cell_loss(heads, encode(tower, views, positions, keep), cells)
            right.append(accuracy.item())
            told.append(cell.float().mean().item())
    return {"marks": round(np.mean(right).item(), 4), "cells": round(np.mean(told).item(), 4)}


def run(work, tokenizer):
    """Windows, then whole crops; keep the tower, drop the heads."""
    if done(work, "2_see"):
        return
    model = current_model(work, tokenizer)
    tower = model.model.embed_tokens_extend.image_embed.img_processor
    start_local(tower, USED_LAYERS)
    model.heads = heads = Heads(VISION["hidden_size"])
    pixels, marks = canvases(work)
    unused = f"layers.{USED_LAYERS}."
    pairs = named(model, "img_processor.embeddings.", "img_processor.encoder.layers.")
    pairs = [(n, p) for n, p in pairs if unused not in n]
    train = [*pairs, *named(model, "heads.")]

    def windows(step, rng):
        views, positions, cells = window_batch(pixels, marks, rng)
        return cell_loss(heads, encode(tower, views, positions), cells)[:2]

    def crops(step, rng):
        views, positions, keep, cells = crop_batch(pixels, marks, rng, CROP_BATCH)
        return cell_loss(heads, encode(tower, views, positions, keep), cells)[:2]

    # over 100 patches PyTorch's fused attention is slower than plain products, over 1024 faster
    model.set_attn_implementation("eager")
    first = Trainer(work, "2_see_windows", model, train, WINDOW_STEPS, 2.5e-3, warmup=100)
    first.run(windows, check=lambda: check(tower, heads, work))
    model.set_attn_implementation("sdpa")
    second = Trainer(work, "2_see_crops", model, train, CROP_STEPS, 1.5e-3)
    second.run(crops, check=lambda: check(tower, heads, work))
    log(work, "2_see", seconds=round(first.seconds + second.seconds))
    keep_part(work, "2_see", model, [n for n, _ in pairs])
