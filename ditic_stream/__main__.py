"""Entry point: `python -m ditic_stream` is the command `ditic-stream`.

Almost nothing is imported before errors and Ctrl-C are under guard: importing the rest takes a third of a second.
"""


def main() -> None:
    """Run the command line; leaves with the exit code."""
    try:
        from ditic_stream import console
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(console.guarded(_run))


def _run() -> None:
    from ditic_stream.cli import run

    run()


if __name__ == "__main__":
    main()
