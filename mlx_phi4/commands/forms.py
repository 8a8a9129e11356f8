"""The options that give an answer a form."""

import click

from ..files import expanded, read_json
from .cli import decorated

_FORM = (
    click.option("--json-schema", metavar="FILE", help="The answer is JSON that this JSON schema describes."),
    click.option("--regex", help="The answer matches this regular expression as a whole."),
    click.option("--think-first", is_flag=True, help="A <think> block may come before an answer in such a form."),
)


def form_options(command):
    """Add the options that give the answer a form; ``read_form`` makes ``stream_generate``'s of them."""
    return decorated(command, _FORM)


def read_form(options: dict) -> dict:
    """Options with the schema in place of its file. Raises Phi4Error."""
    path = options.pop("json_schema")
    return options | {"schema": None if path is None else read_json(expanded(path))}
