"""README.md of what was fused or taken elsewhere."""

from ..converter.plan import Plan
from ..converter.publish import model_card
from ..decoder.adapters import Adapter
from .agreement import Agreement

LIBRARIES = {"peft": "peft", "mlx-lm": "mlx"}
ADAPTER_CARD = """---
library_name: {library}
tags:
- lora
- phi4{base}
---

# {title}

{kind} of {ranks} on {linears} linears of the decoder, for {model}.

```python
from mlx_phi4 import generate, load

model, processor = load({name!r}, adapters={{"mine": "folder of this adapter"}})
print(generate(model, processor, "Hello", adapter="mine"))
```
{about}"""

COST = """
## An adapter is in these weights

Its cost beside the same adapter over the base as it was, token by token along its answers:

| requests | tokens | most likely token another | divergence, nats |
|---|--:|--:|--:|
{rows}
"""


def adapter_card(base: str | None, adapter: Adapter, form: str) -> str:
    """Of an adapter's own folder; ``base`` is a hub id, or None for a folder."""
    ranks = sorted({part.rank for part in adapter.linears.values()})
    about = "".join(f"- {name}: {value}\n" for name, value in adapter.about.items())
    return ADAPTER_CARD.format(
        library=LIBRARIES[form],
        base=f"\nbase_model: {base}" if base else "",
        title=f"An adapter for {base}" if base else "An adapter for Phi-4",
        kind="DoRA" if adapter.is_dora else "LoRA",
        ranks=f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}",
        linears=len(adapter.linears),
        model=base or "a Phi-4 model",
        name=base or "folder or hub id of the base",
        about=f"\n{about}" if about else "",
    )


def fused_card(base: str | None, plan: Plan, found: list[Agreement]) -> str:
    """Of a model's folder: the converter's, and what fusing cost."""
    table = plan.config.get("quantization")
    card = model_card(base, plan.layout != "text", table)
    rows = "\n".join(f"| {a.mode} | {a.tokens} | {100 * a.changed:.1f} % | {a.divergence:.4f} |" for a in found)
    return card + COST.format(rows=rows)
