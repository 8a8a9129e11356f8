"""Write data/long.npz: the reference's greedy tokens across the end of the original context (4096 tokens).

    python tests/golden/make_long_golden.py

Transformers' cached `generate` loses the context at 4097 tokens, so the regimes are kept apart here: a cache within
each, and one pass over everything where the long table begins. At the end, passes without any cache over the whole
sequence (one for each regime) must give the same tokens again.
"""

import tempfile

import numpy as np
import torch
from cases import LONG_CASES, NEW_TOKENS
from make_golden import DATA
from reference import Reference

from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

ORIGINAL = 4096


def embeddings_of(reference, embeddings, tokens):
    """Prompt embeddings with generated tokens behind them, (1, L, D)."""
    return torch.cat([embeddings, reference.model.model.embed_tokens(torch.tensor([tokens]))], dim=1)


@torch.no_grad()
def greedy(reference, prepared) -> tuple[list[int], np.ndarray]:
    """New tokens, and how far each one's logit is above the second best in the passes without a cache."""
    if prepared.adapter is not None:
        reference.peft.set_adapter(prepared.adapter)
    embeddings = reference.embed(prepared)
    start, tokens, cache = embeddings.shape[1], [], None
    while len(tokens) < NEW_TOKENS:
        length = start + len(tokens)
        if cache is None or length == ORIGINAL + 1:
            given = embeddings_of(reference, embeddings, tokens) if tokens else embeddings
            out = reference.model(inputs_embeds=given, use_cache=True)
        else:
            out = reference.model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        tokens.append(int(out.logits[0, -1].argmax()))
    return tokens, check(reference, embeddings, tokens)


def check(reference, embeddings, tokens) -> np.ndarray:
    start = embeddings.shape[1]
    whole = embeddings_of(reference, embeddings, tokens)[:, :-1]
    logits = reference.model(inputs_embeds=whole, use_cache=False).logits[0]
    if start <= ORIGINAL:
        short = reference.model(inputs_embeds=whole[:, :ORIGINAL], use_cache=False).logits[0]
        logits = torch.cat([short, logits[ORIGINAL:]])
    second, first = logits[start - 1 :].topk(2).values.flip(-1).T
    assert logits[start - 1 :].argmax(-1).tolist() == tokens, "cached and uncached passes disagree"
    return (first - second).numpy().astype(np.float16)


def main():
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(write_random_checkpoint(folder, "transformers", "reduced"))
        for case in LONG_CASES:
            prepared = reference.prepare(case.chat(), case.images(), case.audios())
            if prepared.adapter is None:
                with reference.peft.disable_adapter():
                    tokens, margin = greedy(reference, prepared)
            else:
                tokens, margin = greedy(reference, prepared)
            print(f"{case.name}: prompt {prepared.input_ids.shape[1]}, smallest margin {margin.min():.4f}", flush=True)
            found |= {f"{case.name}/tokens": np.array(tokens, np.int16), f"{case.name}/margin": margin}
    np.savez_compressed(DATA / "long.npz", **found)


if __name__ == "__main__":
    main()
