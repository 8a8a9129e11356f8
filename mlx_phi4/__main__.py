"""``python -m mlx_phi4 <command>``: every command, also where its console script is not on the PATH."""

import click

from .commands import cli, habits


class Commands(click.Group):
    """The commands by name; each is imported when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """In the order of a newcomer's way."""
        known = ["generate", "chat", "server", "transcribe", "convert", "lora", "fuse", "cache_prompt"]
        return [*known, "evaluate", "benchmark", "selftest"]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name, or None."""
        name = name.replace("-", "_")
        if name == "generate":
            from .commands.generate import main
        elif name == "chat":
            from .commands.chat import main
        elif name == "server":
            from .commands.server import main
        elif name == "transcribe":
            from .commands.transcribe import main
        elif name == "convert":
            from .commands.convert import main
        elif name == "lora":
            from .commands.lora import main
        elif name == "fuse":
            from .commands.fuse import main
        elif name == "cache_prompt":
            from .commands.cache_prompt import main
        elif name == "evaluate":
            from .commands.evaluate import main
        elif name == "benchmark":
            from .commands.benchmark import main
        elif name == "selftest":
            from .commands.selftest import main
        else:
            return None
        return main


main = Commands(
    "python -m mlx_phi4",
    help="Phi-4-mini and Phi-4-multimodal on Apple silicon with MLX. COMMAND --help lists a command's options.",
    no_args_is_help=False,
    context_settings=habits.SETTINGS,
)
cli.version_option(main)

if __name__ == "__main__":
    cli.run(main)
