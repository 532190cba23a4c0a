"""`python -m ditic_stream` is the command `ditic-stream`."""

from ditic_stream.cli import main

if __name__ == "__main__":
    main()
