"""The command `python -m training`: the simulation, a training run, a folder of checkpoints."""

from __future__ import annotations

import typer

from training.checkpoints_cli import checkpoints

main = typer.Typer(
    name="training",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
main.add_typer(checkpoints, name="checkpoints")


@main.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Training operations: schedules, checkpoints, rollback, retuning. Alone: the simulation."""
    if context.invoked_subcommand is None:
        simulate()


@main.command()
def simulate(seed: int = 0) -> None:
    """Show what the operations do: checkpoints, a downshift, a retuning. Takes a second."""
    from training import simulate as story  # noqa: PLC0415

    story.simulate(typer.echo, seed=seed)
