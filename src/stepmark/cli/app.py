"""The application that all commands share. It turns Stepmark's errors into a message and an exit status."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from stepmark.errors import StepmarkError


class _Group(TyperGroup):
    """Turns Stepmark's errors, Ctrl-C and a closed pipe into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StepmarkError as e:
            typer.echo("\n".join(f"stepmark: {line}" for line in str(e).splitlines()), err=True)
            raise typer.Exit(e.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("stepmark: interrupted. Finished work is kept; the same command goes on.", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


app = typer.Typer(
    cls=_Group,
    name="stepmark",
    help=(
        "Turn a task with checkable answers and any language model into a verifier of step-by-step reasoning.\n\n"
        "\b\nSee it work:      stepmark demo\n"
        "Your own data:    stepmark run my_recipe.yaml\nThis machine:     stepmark doctor"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
