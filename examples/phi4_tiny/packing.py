"""Rows of tokens for training on pictures and sound: one shared start, several questions after it.

A picture is 300 to 550 tokens and a question ten, so each row holds a picture once and several
questions about it. Every question sees the start and itself only, at the positions it would have
alone: each is exactly the single-turn request.
"""

import torch
from tokenizer import AUDIO, IMAGE
from training import additive, answer_loss


def pack(tokenizer, rows):
    """``rows``: list of (start ids, list of (question ids, answer ids)).

    Returns ids, targets (-100 off the answers) and positions, each (B, L), and which positions
    each one sees (B, 1, L, L).
    """
    length = max(len(s) + sum(len(q) + len(a) for q, a in parts) for s, parts in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, tokenizer.token_to_id("<|end|>"))
    targets, positions = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1)
    for i, (start, parts) in enumerate(rows):
        at = len(start)
        ids[i, :at], positions[i, :at], segment[i, :at] = torch.tensor(start), torch.arange(at), 0
        for j, (question, answer) in enumerate(parts):
            end = at + len(question) + len(answer)
            ids[i, at:end] = torch.tensor(question + answer)
            positions[i, at:end] = torch.arange(len(start), len(start) + end - at)
            segment[i, at:end] = j + 1
            targets[i, at + len(question) - 1 : end - 1] = torch.tensor(answer)
            at = end
    same = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    seen = same & torch.ones(length, length, dtype=torch.bool).tril()
    return ids, targets, positions, seen[:, None]


def picture_tokens(image_embed, features, marks):
    """Projected tokens (n, width) of cached features.

    ``marks`` says where the learned separators stand: 1 a row's end, 2 the global view's start.
    """
    row_end, start = image_embed.sub_img_feature_extensor, image_embed.global_img_feature_extensor
    x = features.float()
    x = x + (marks == 1)[:, None] * row_end.view(1, -1) + (marks == 2)[:, None] * start.view(1, -1)
    up = torch.nn.functional.gelu(image_embed.img_projection_up(x))
    return image_embed.img_projection_down(up)


def sound_tokens(audio_embed, features, mode):
    """Projected tokens (n, width) of cached conformer features, by the mode's own projector."""
    vision = mode == "vision"
    up = audio_embed.up_proj_for_vision_speech if vision else audio_embed.up_proj_for_speech
    down = audio_embed.down_proj_for_vision_speech if vision else audio_embed.down_proj_for_speech
    return down(torch.nn.functional.gelu(up(features.float())))


def hidden_states(model, tokenizer, batch, pictures=None, sounds=None):
    """Last hidden states (B, L, D) of packed rows, with media tokens put at the placeholders."""
    ids, _, positions, seen = batch
    x = model.model.embed_tokens(ids)
    for name, tokens in ((IMAGE, pictures), (AUDIO, sounds)):
        if tokens is not None:
            where = torch.nonzero(ids == tokenizer.token_to_id(name), as_tuple=True)
            x = x.index_put(where, tokens.to(x.dtype))
    out = model.model(inputs_embeds=x, attention_mask=additive(seen), position_ids=positions)
    return out.last_hidden_state


def packed_loss(model, tokenizer, batch, **media):
    """Cross entropy and token accuracy over all answers of a packed batch."""
    return answer_loss(model, hidden_states(model, tokenizer, batch, **media), batch[1])


@torch.no_grad()
def exact_answers(model, tokenizer, batch, **media):
    """For every question in order (row by row): was each token of its answer the first choice?"""
    hidden = hidden_states(model, tokenizer, batch, **media)
    best = (hidden @ model.model.embed_tokens.weight.T).argmax(-1)
    right = (best == batch[1]) | (batch[1] == -100)
    answers = []
    for row, target in zip(right, batch[1], strict=True):
        inside = target != -100
        # an answer is one run of targets
        starts = inside & ~torch.nn.functional.pad(inside, (1, 0))[:-1]
        number = starts.long().cumsum(0) * inside
        answers += [bool(row[number == k].all()) for k in range(1, int(starts.sum()) + 1)]
    return answers
