"""The command `python -m training`: the simulation, a training run, a folder of checkpoints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from training.checkpoints_cli import checkpoints

main = typer.Typer(
    name="training",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
main.add_typer(checkpoints, name="checkpoints", short_help="ls, verify, show, pin, prune, restore.")


@main.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Training operations: schedules, checkpoints, rollback, retuning. Alone: the simulation."""
    if context.invoked_subcommand is None:
        simulate()


@main.command(short_help="Show what the operations do, in a second.")
def simulate(
    seed: Annotated[int, typer.Option(help="Of the pretended rewards and ratings.")] = 0,
) -> None:
    """Show what the operations do: checkpoints, a downshift, a retuning. Takes a second."""
    from training import simulate as story  # noqa: PLC0415

    with _one_clear_line():
        story.simulate(typer.echo, seed=seed)


@main.command(short_help="Train PPO on a Gymnasium environment.")
def train(
    env: Annotated[str | None, typer.Option(help="Gymnasium id; CartPole-v1 if not given.")] = None,
    total_steps: Annotated[
        int | None, typer.Option(min=1, help="Environment steps, all environments together.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of networks, environments and actions; 1.")
    ] = None,
    n_envs: Annotated[int | None, typer.Option(min=1, help="Environments side by side.")] = None,
    n_steps: Annotated[int | None, typer.Option(min=1, help="Steps of each in a rollout.")] = None,
    n_epochs: Annotated[int | None, typer.Option(min=1, help="Passes over a rollout.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of a mini-batch.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Adam's, at the beginning.")
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Discount of what comes a step later.")
    ] = None,
    scale_rewards: Annotated[
        bool | None, typer.Option(help="Learn from rewards in a scale of their own.")
    ] = None,
    ops: Annotated[bool, typer.Option(help="Checkpoints, guard and rollback.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --folder.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Of the run; runs/ENV_seedN if not given.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Updates between checkpoints.")
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="End after this update, to be resumed.")
    ] = None,
) -> None:
    """Train PPO on a Gymnasium environment. Ctrl-C saves; --resume goes on bit for bit.

    What is not given comes from the settings known to work: CleanRL's for classic control, those of
    Stable-Baselines3's zoo for Pendulum-v1. The folder then holds checkpoints, progress.csv,
    TensorBoard logs and curve.png.
    """
    chosen = {
        "total_steps": total_steps,
        "seed": seed,
        "n_envs": n_envs,
        "n_steps": n_steps,
        "n_epochs": n_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "gamma": gamma,
        "scale_rewards": scale_rewards,
    }
    if resume and not ops:
        raise _refused("--resume needs the checkpoints that --no-ops does without")
    with _one_clear_line():
        from training import progress  # noqa: PLC0415
        from training import train as training_run  # noqa: PLC0415

        where = folder or Path("runs") / f"{env or 'CartPole-v1'}_seed{1 if seed is None else seed}"
        settings = training_run.prepare(where, env, chosen, resume=resume)
        summary = training_run.train(
            settings,
            where,
            with_ops=ops,
            resume=resume,
            save_every=save_every,
            stop_after=stop_after,
            tell=typer.echo,
            display=progress.bar if sys.stdout.isatty() else None,
        )
    typer.echo(str(summary))
    if summary.halted:
        typer.echo(summary.halted, err=True)
        raise typer.Exit(1)
    if summary.interrupted:
        kept = f"continue with: {summary.how_to_resume}" if ops else "nothing was saved (--no-ops)"
        typer.echo(f"stopped after update {summary.update} of {settings.updates}; {kept}")
        raise typer.Exit(0 if summary.update == stop_after else 130)


@main.command(short_help="Published protocols, ours beside them.")
def yardsticks(
    quick: Annotated[
        bool, typer.Option("--quick", help="A twentieth of the steps, one seed: does it run?")
    ] = False,
    only: Annotated[
        str, typer.Option(help="Which, by name, with commas.")
    ] = "cartpole,acrobot,pendulum",
    seeds: Annotated[str, typer.Option(help="Which, with commas.")] = "1,2,3",
    folder: Annotated[
        Path, typer.Option(help="Finished runs lie here and are not repeated.")
    ] = Path("runs/yardsticks"),
) -> None:
    """Run the published protocols again and print our figures beside theirs. Takes up to
    an hour on a busy machine.

    cartpole: CartPole-v1, 500,000 steps; acrobot: Acrobot-v1, 500,000 steps; pendulum: Pendulum-v1,
    100,000 steps. Table and plot are written into the folder.
    """
    with _one_clear_line():
        from training import yardsticks as published  # noqa: PLC0415

        chosen = [1] if quick else published.seeds_in(seeds)
        where = folder / "quick" if quick else folder
        names = published.names_in(only)
        results = published.run_all(where, names, chosen, typer.echo, quick=quick)
        typer.echo(published.report(where, results, quick=quick))


@contextlib.contextmanager
def _one_clear_line() -> Iterator[None]:
    """What was asked for cannot be done: one line says why, and the exit status is 2."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("numpy", "torch"):
            remedy = "pip install 'downshift-gateway[training]'"
            raise _refused(f"this needs {error.name}: {remedy}") from None
        kinds = ("RunRefused", "EnvironmentUnknown", "TrainingError", "ModuleNotFoundError")
        if {kind.__name__ for kind in type(error).__mro__} & {*kinds, "OSError", "ValueError"}:
            raise _refused(" ".join(str(error).split())) from None
        raise


def _refused(why: str) -> typer.Exit:
    typer.echo(f"error: {why}", err=True)
    return typer.Exit(2)
