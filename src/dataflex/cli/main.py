"""``dataflex-cli``: one function a verb; heavy imports happen inside the verbs."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import typer

from dataflex import __version__
from dataflex.core.errors import ConfigError, DataFlexError

MOST_CHARACTERS = 1500  # of an error: a config may hold values and names of any length
PASS_THROUGH = ("api", "chat", "env", "eval", "webchat", "webui")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Choose training samples while a language model trains. Configs are LLaMA-Factory's, plus our keys.",
    epilog=f"{', '.join(PASS_THROUGH)}: handed to LLaMA-Factory unchanged.",
    pretty_exceptions_enable=False,
)

CONFIG = typer.Argument(..., metavar="CFG.yaml", help="A LLaMA-Factory config plus our keys; .yaml, .yml or .json.")
RUN_DIRS = typer.Argument(..., metavar="RUN_DIR ...", help="The output_dir of one or several runs.")
OVERRIDES = typer.Argument(None, metavar="[key=value ...]", help="E.g. warmup_step=20 component.params.window_size=0.1")


# "--warmup_step=5" and the like are read as overrides, so that the mistake is told as any other.
AS_OVERRIDES = {"ignore_unknown_options": True}


@app.command(context_settings=AS_OVERRIDES)
def train(
    config: str = CONFIG,
    overrides: list[str] = OVERRIDES,
    fresh: bool = typer.Option(False, "--fresh", help="Take no initial losses from the cache of another run."),
    other_versions: bool = typer.Option(
        False, "--other-versions", help="Resume a run although packages have other versions than it was recorded with."
    ),
) -> None:
    """Train: in one process, or with torchrun when several devices are visible or FORCE_TORCHRUN=1."""
    from dataflex.cli.train import train

    train(config, overrides or [], fresh=fresh, other_versions=other_versions)


@app.command(context_settings=AS_OVERRIDES)
def plan(
    config: str = CONFIG,
    overrides: list[str] = OVERRIDES,
    like: str = typer.Option(None, "--like", help="An earlier run on this machine: how long choosing will take."),
) -> None:
    """Show segments, quotas, windows and costs of a run; checks the whole config, loads no model, writes nothing."""
    from dataflex.cli.plan import plan

    plan(config, overrides or [], like)


@app.command(context_settings=AS_OVERRIDES)
def select(
    config: str = CONFIG,
    overrides: list[str] = OVERRIDES,
    out: str = typer.Option(..., "--out", help="The file to write: .jsonl or .parquet."),
    take: str = typer.Option(None, "--take", help="How many: rows (40) or a share of the pool (0.1 or 10%)."),
    update: int = typer.Option(None, "--update", help="Which decision of the schedule, from 1; default: first guided."),
    baseline: str = typer.Option(
        None, "--baseline-from", help="Initial losses for delta_loss: a run, a selection, or a file of losses."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file if it exists."),
) -> None:
    """Choose without training: write the chosen samples, with their scores, as they were in their data set."""
    from dataflex.cli.select import select

    select(config, overrides or [], out=out, take=take, update=update, baseline=baseline, overwrite=overwrite)


@app.command(context_settings=AS_OVERRIDES)
def embed(config: str = CONFIG, overrides: list[str] = OVERRIDES) -> None:
    """Make the embeddings that a run of near, tsds or cluster_less needs, ahead of it, into its cache_dir."""
    from dataflex.cli.ahead import make_ahead

    make_ahead("embed", config, overrides or [])


@app.command(context_settings=AS_OVERRIDES)
def score(config: str = CONFIG, overrides: list[str] = OVERRIDES) -> None:
    """Measure the initial losses that a run of delta_loss needs, ahead of it, into its cache_dir."""
    from dataflex.cli.ahead import make_ahead

    make_ahead("score", config, overrides or [])


@app.command()
def report(
    run_dirs: list[str] = RUN_DIRS,
    out: str = typer.Option(None, "--out", help="The file to write; default: dataflex/report.html of the first run."),
    lang: str = typer.Option("auto", "--lang", help="en, zh, or auto: the browser's; the page can switch."),
    follow: bool = typer.Option(False, "--follow", help="Serve the page on this machine while the run goes on."),
    port: int = typer.Option(8780, "--port", help="Port of --follow; 0 takes a free one."),
) -> None:
    """Show what was chosen, when and why: one HTML page that needs no network."""
    from dataflex.cli.report import report

    report(run_dirs, out, lang, follow, port)


@app.command()
def audit(
    run_dirs: list[str] = RUN_DIRS,
    run_code: bool = typer.Option(False, "--run-code", help="Import the method of another package that it names."),
) -> None:
    """Verify the record of a run, or compare two: exit code 0 verified, 1 damage found, 3 other decisions."""
    from dataflex.cli.audit import audit

    raise typer.Exit(audit(run_dirs, run_code))


@app.command()
def compare(
    plan_file: str = typer.Argument(..., metavar="PLAN.yaml", help="Base config, components, seeds, held-out rows."),
) -> None:
    """Train the same config under several methods and seeds; say what the differences are worth. Can be resumed."""
    from dataflex.cli.compare import compare

    raise typer.Exit(compare(plan_file))


@app.command(context_settings=AS_OVERRIDES)
def export(config: str = CONFIG, overrides: list[str] = OVERRIDES) -> None:
    """Merge and save as LLaMA-Factory does; the model card says how the training data were chosen."""
    from dataflex.cli.export import export

    export(config, overrides or [])


@app.command(context_settings=AS_OVERRIDES)
def evaluate(
    config: str = typer.Argument(..., metavar="CFG.yaml", help="Models, files of questions, tasks, metrics."),
    overrides: list[str] = OVERRIDES,
) -> None:
    """Judge models side by side on question-answer files and lm-evaluation-harness tasks. Can be resumed."""
    from dataflex.cli.evaluate import evaluate

    evaluate(config, overrides or [])


@app.command()
def components(
    file: str = typer.Option(None, "--file", help="A components file whose presets to list as well."),
) -> None:
    """List the methods with their parameters, defaults and sources, and the presets."""
    from dataflex.cli.components import components

    components(file)


@app.command()
def doctor() -> None:
    """Show versions and devices, and say what is known to break and how to mend it."""
    from dataflex.cli.doctor import doctor

    raise typer.Exit(doctor())


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"dataflex {__version__}")


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name in a config need not be printable everywhere
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if len(sys.argv) > 1 and sys.argv[1] in PASS_THROUGH:
            from dataflex.cli.passthrough import pass_through

            pass_through(sys.argv[1:])
        else:
            app()
    except DataFlexError as error:
        _end_output()
        rank = os.environ.get("RANK", "0")
        # A mistake in the config is found by every rank alike: rank 0 speaks. What another rank alone met, it says.
        if rank == "0" or not (error.told_by_another_rank or isinstance(error, ConfigError)):
            where = "" if rank == "0" else f"rank {rank}: "
            sentence = " ".join(str(error).split())
            sentence = sentence if len(sentence) <= MOST_CHARACTERS else f"{sentence[:MOST_CHARACTERS]}…"
            print(f"dataflex-cli: error: {where}{sentence}", file=sys.stderr)
        sys.exit(2)
    except BaseException:
        _end_output()
        raise


def _end_output() -> None:
    """End what is under way on the terminal, so that an error is the last thing on it."""
    if "tqdm" in sys.modules:
        from dataflex.train.progress import close_bars

        close_bars()
    with contextlib.suppress(BrokenPipeError):  # who read it has gone
        sys.stdout.flush()


if __name__ == "__main__":
    main()
