"""Stage (a): the language model on text. Its weights are final: all later stages freeze them."""

import torch
from data_text import held_out_items, sample
from quantization import quantized
from training import (
    Trainer,
    answer_loss,
    current_model,
    done,
    keep_part,
    named,
    teacher_forced,
    text_batch,
    use,
)

STEPS, BATCH = 3200, 128


def base_parameters(model):
    """Embedding, norms and the base linears of the decoder: no adapter, no encoder."""
    pairs = named(model, "model.embed_tokens.weight", "model.layers.", "model.norm.")
    return [(n, p) for n, p in pairs if "lora_" not in n and "embed_tokens_extend" not in n]


def accuracy(model, tokenizer, items):
    """Share of exact answers; one pass, since an answer right under teacher forcing is greedy."""
    use(model, None)
    ids, targets = text_batch(tokenizer, [(None, q, a) for q, a in items])
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
    return teacher_forced(model, hidden, targets).float().mean().item()


def check(model, tokenizer):
    """Held-out accuracy, exact and with the base rounded to 4 bits."""
    items = held_out_items(1000)
    exact = accuracy(model, tokenizer, items)
    with quantized(model):
        rounded = accuracy(model, tokenizer, items)
    return {"text": round(exact, 4), "text_4bit": round(rounded, 4)}


def run(work, tokenizer):
    """Train, check, keep."""
    if done(work, "1_text"):
        return
    model = current_model(work, tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2.0)  # tied head: a little larger than the default
    parameters = base_parameters(model)
    trainer = Trainer(work, "1_text", model, parameters, STEPS, 2e-3, noisy=0.5, warmup=200)

    def step_loss(step, rng):
        use(model, None)
        ids, targets = text_batch(tokenizer, [sample(rng) for _ in range(BATCH)])
        return answer_loss(model, model.model(input_ids=ids).last_hidden_state, targets)

    trainer.run(step_loss, every=200, check=lambda: check(model, tokenizer))
    keep_part(work, "1_text", model, [n for n, _ in parameters])
