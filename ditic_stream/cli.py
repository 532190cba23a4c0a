"""The command line: every verb, and what `--help` says of it in a line.

Results on stdout (`--json`: one object a line), progress and errors on stderr.  Exit 0 done, 1 failed in one line with
its kind, 2 usage, 130 interrupted.  The verbs are in verbs/; everything heavy is imported inside the verb that needs
it: `info` and `verify` start without torch and zarr.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ditic_stream import console
from ditic_stream.verbs import batch, coding, models, serve, train

app = typer.Typer(
    name="ditic-stream",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # errors are one line (console.guarded), tracebacks are for DITIC_DEBUG=1
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress scenes too large to hold with a learned codec, tile by tile, and read any window of them back.",
)
models_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The networks and weights at hand.")
app.add_typer(models_app, name="models")

app.command(short_help="Compress a scene into an archive, or resume.")(coding.compress)
app.command(short_help="Decode a whole archive into a file.")(coding.decompress)
app.command(short_help="Decode one window into a file.")(coding.region)
app.command(short_help="Say what an archive holds and costs.")(coding.info)
app.command(short_help="Check every byte of an archive.")(coding.verify)
app.command(short_help="Measure an archive against its scene.")(coding.compare)
app.command(short_help="Run the jobs of a file, here or on a cluster.")(batch.batch)
app.command(short_help="Serve archives over HTTP: map tiles, Deep Zoom, IIIF, regions.")(serve.serve)
app.command(short_help="Look at an archive in the browser.")(serve.view)
app.command(short_help="Train the networks of the package.")(train.train)

models_app.command("list", short_help="List the weight sets at hand.")(models.list_models)
models_app.command("import", short_help="Bring a checkpoint or a bundle into the model folder.")(models.import_model)
models_app.command("export", short_help="Pack weights of the model folder into a bundle.")(models.export_model)


def main(arguments: list[str] | None = None) -> None:
    """The command from within Python; leaves with the exit code."""
    raise SystemExit(console.guarded(lambda: run(arguments)))


def run(arguments: list[str] | None = None) -> None:
    """The command without the guard that turns errors into exit codes."""
    # typer brings pydantic, which looks through every installed package for plugins: a tenth of the start of `info`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    app(arguments)


def _version(wanted: bool) -> None:
    if wanted:
        from ditic_stream import __version__

        typer.echo(f"ditic-stream {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
