"""What a checkpoint's own chat template says before the first message.

The family shares one template (see ``prompt.py``), but a model may begin every conversation with a system text of its
own, as Phi-4-mini-reasoning does. That text is read off the template by rendering it twice.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..files import read_json, read_text
from .template_evaluator import evaluate

SYSTEM, USER = "SYSTEM-CONTENT", "USER-CONTENT"
ANSWER = f"<|user|>{USER}<|end|><|assistant|>"


@dataclass(frozen=True)
class DefaultSystemText:
    """A model's own system text: where a conversation brings none, and what stands before the one that it brings."""

    alone: str = ""
    before: str = ""


def read_default_system(folder: Path) -> DefaultSystemText:
    """What the template in ``chat_template.jinja`` or ``tokenizer_config.json`` says; empty if it says nothing."""
    template = read_template(folder)
    if template is None:
        return DefaultSystemText()
    alone = _system_text(render(template, [{"role": "user", "content": USER}]))
    if not alone:
        return DefaultSystemText()
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    given = _system_text(render(template, messages)) or SYSTEM
    return DefaultSystemText(alone, given.removesuffix(SYSTEM) if given.endswith(SYSTEM) else "")


def read_template(folder: Path) -> str | None:
    """The folder's own chat template, if it has one that can be read."""
    try:
        if (folder / "chat_template.jinja").exists():
            return read_text(folder / "chat_template.jinja")
        template = read_json(folder / "tokenizer_config.json").get("chat_template")
    except ConfigError:
        return None
    return template if isinstance(template, str) else None


def render(template: str, messages: list[dict]) -> str:
    """The template's text for these messages; one that fails, in whatever way, says nothing."""
    try:
        return evaluate(template, {"messages": messages, "add_generation_prompt": True, "tools": None})
    except Exception:  # a template is somebody else's program: there is nothing that it may not do wrong
        return ""


def _system_text(rendered: str) -> str:
    """The text of the one system message before the user's turn; empty for any other form."""
    head = rendered.removesuffix(ANSWER)
    if head == rendered or not head.startswith("<|system|>") or not head.endswith("<|end|>"):
        return ""
    text = head.removeprefix("<|system|>").removesuffix("<|end|>")
    return "" if "<|" in text else text
