"""Write the adapters of ``data/adapters``: trained a little and saved by peft, with the logits that peft gives by them.

    pip install -e ".[reference]"
    python tests/golden/make_adapters.py

See README.md beside this file for what is in them.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import reference  # noqa: F401  first: transformers needs operators that it declares
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Phi3ForCausalLM

from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

DATA = Path(__file__).parent / "data" / "adapters"
LENGTH = 48  # tokens
STEPS, RATE = 3, 2e-2  # of training: enough for no matrix to be zero and no magnitude where it began
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SPLIT = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]

# name -> peft's LoraConfig; those that name a projection of SPLIT are trained on a model that has them apart
CASES = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": FUSED},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": FUSED,
        "rank_pattern": {"down_proj": 3, "layers.0.self_attn.qkv_proj": 2, r"model\.layers\.1\.mlp\.gate_up_proj": 5},
        "alpha_pattern": {"layers.1.mlp.down_proj": 1, "o_proj": 7},
    },
    "rslora": {
        "r": 3,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": ["qkv_proj", "down_proj"],
        "layers_to_transform": [1],
        "rank_pattern": {"down_proj": 2},
    },
    "dora": {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": FUSED},
    "split": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"v_proj": 5},
    },
    "split_dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["q_proj", "k_proj", "up_proj"]},
    "split_rslora": {
        "r": 2,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": r".*layers\.\d+\.(self_attn\.(q|k|v)|mlp\.(gate|up))_proj",
        "rank_pattern": {"0.self_attn.q_proj": 4, "gate_proj": 3},
    },
}


def base(folder: Path) -> Phi3ForCausalLM:
    """The text model of a checkpoint, in float32."""
    return Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def split(model: Phi3ForCausalLM) -> Phi3ForCausalLM:
    """The same model with q, k, v and gate, up as linears of their own, named as Llama's are."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    queries, others = config.num_attention_heads * head, config.num_key_value_heads * head
    for layer in model.model.layers:
        _apart(layer.self_attn, "qkv_proj", {"q_proj": queries, "k_proj": others, "v_proj": others})
        rows = config.intermediate_size
        _apart(layer.mlp, "gate_up_proj", {"gate_proj": rows, "up_proj": rows})
    return model


def _apart(module: torch.nn.Module, fused: str, parts: dict[str, int]) -> None:
    weights = getattr(module, fused).weight.detach().split(list(parts.values()))
    delattr(module, fused)
    for name, weight in zip(parts, weights, strict=True):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(weight.clone())
        setattr(module, name, linear)
    # no module: its parts are found when it is called, whatever peft has put into their places by then
    object.__setattr__(module, fused, lambda x: torch.cat([getattr(module, name)(x) for name in parts], -1))


def trained(model: Phi3ForCausalLM, options: dict, seed: int) -> PeftModel:
    """A new adapter over a model, after a few steps on random tokens."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=RATE)
    for _ in range(STEPS):
        ids = torch.randint(0, model.config.vocab_size, (2, LENGTH))
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


def is_split(options: dict) -> bool:
    named = str(options["target_modules"])
    return any(f"'{name}'" in named for name in SPLIT) or "(q|k|v)" in named


@torch.no_grad()
def logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """(L, V) of one pass over token ids (L,)."""
    return model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].numpy()


def save(adapted: PeftModel, folder: Path) -> None:
    """As peft saves it, without the card and the path of the base."""
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"base_model_name_or_path": None}, indent=2, sort_keys=True) + "\n")


def main():
    shutil.rmtree(DATA, ignore_errors=True)
    found = {"ids": np.random.default_rng(14).integers(0, 256, LENGTH).astype(np.int32)}
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(folder, "text", "reduced")
        found["base"] = logits(base(folder), found["ids"])[::8]
        assert np.abs(logits(split(base(folder)), found["ids"])[::8] - found["base"]).max() < 1e-4
        for seed, (name, options) in enumerate(CASES.items()):
            model = split(base(folder)) if is_split(options) else base(folder)
            adapted = trained(model, options, seed)
            save(adapted, DATA / name)
            found[name] = logits(adapted, found["ids"])[::8]
            moved = np.abs(found[name] - found["base"]).max()
            held = load_file(DATA / name / "adapter_model.safetensors")
            assert all(bool(value.any()) for value in held.values()) and moved > 0.1, (name, moved)
            print(f"{name:14} {len(held):3} tensors, moves logits by up to {moved:.2f}")
    np.savez_compressed(DATA / "logits.npz", **found)
    print("wrote", DATA, file=sys.stderr)


if __name__ == "__main__":
    main()
