"""The program `mmlm`, and what its commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

Command = TypeVar("Command", bound=Callable[..., None])


class Commands(TyperGroup):
    """The program: an option that can't be read ends it with one line and exit code 2, as every other error does."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **settings: Any) -> Any:  # type: ignore[override]
        try:
            found = super().main(*arguments, **{**settings, "standalone_mode": False})
        except Exception as error:  # typer may bring a click of its own, so its classes can't be named
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
                raise SystemExit(2) from error
            context = getattr(error, "ctx", None)
            program = "mmlm" if context is None else context.command_path
            typer.echo(f"{program}: error: {' '.join(error.format_message().split())}", err=True)
            raise SystemExit(error.exit_code) from error  # type: ignore[attr-defined]
        if standalone_mode:
            raise SystemExit(found if isinstance(found, int) else 0)
        return found


app = typer.Typer(
    name="mmlm",
    cls=Commands,
    help="Merge a visual tokenizer into a language model, draw and describe pictures, measure the result.\n\n"
    "Training: accelerate launch -m visual_tokenizer.train, accelerate launch -m mmlm.train.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
RECIPE_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of commands that take `--section.field VALUE`."""
FORMER_OPTIONS = {"out": "output"}
"""Former name of an option → its name now; the former one is still read, with a warning."""


def option_name(name: str) -> str:
    """Return an option's name now, for one given with `-` in place of `_`, or by its former name."""
    name = name.replace("-", "_")
    if name in FORMER_OPTIONS:
        typer.echo(f"mmlm: --{name} is now called --{FORMER_OPTIONS[name]}", err=True)
    return FORMER_OPTIONS.get(name, name)


ModelOption = Annotated[str, typer.Option("--model", help="Folder of a merged model, or its name on the hub.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …; by default a GPU where there is one.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed draws the same.")]
TopKOption = Annotated[int, typer.Option("--top_k", help="Sample from the k likeliest tokens; 0: all.")]
TopPOption = Annotated[float, typer.Option("--top_p", help="Sample from the likeliest tokens of this probability.")]
BatchOption = Annotated[int, typer.Option("--batch_size", min=1, help="Pictures at a time.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0: the likeliest token.")]


def command(name: str, **settings: Any) -> Callable[[Command], Command]:
    """Register a command whose user errors end in one line on stderr and exit code 2.

    Args:
        **settings: further context settings.
    """

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def guarded(*arguments: Any, **given: Any) -> None:
            from visual_tokenizer.errors import exit_on_user_error  # here, as it brings torch, which --help needs not

            with exit_on_user_error(f"mmlm {name}"):
                function(*arguments, **given)

        app.command(name, context_settings={"token_normalize_func": option_name, **settings})(guarded)
        return function

    return register


def refuse(message: str) -> NoReturn:
    """Raise what ends a command with one line, for arguments that do not fit together or files that are not there."""
    from visual_tokenizer.errors import UserError

    raise UserError(message)


def recipe_words(config: str | None, given: dict[str, Any]) -> list[str]:
    """Return the options of a command as arguments of a recipe."""
    words = [] if config is None else ["--config", config]
    for key, value in given.items():
        words += [] if value is None else [f"--{key}", str(value)]
    return words


def be_quiet() -> None:
    """Turn off the bars that transformers draws while it loads and saves."""
    from transformers.utils import logging

    logging.disable_progress_bar()
