"""Which real files go through and which are refused: write the table of docs/formats.md, or check it.

    python benchmarks/formats.py            write the table anew
    python benchmarks/formats.py --check    exit 1 when the committed table is not what this run finds

Every file of SHARED/data/scenes (DITIC_SHARED, or the folder `shared` beside the checkout) is opened and read whole, by
windows.  A row says what came, or the one sentence of the refusal.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ditic_stream.errors import SourceError
from ditic_stream.radiometry import blocks
from ditic_stream.reader import Source, open_source

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DITIC_SHARED", ROOT.parent / "shared"))
PAGE = ROOT / "docs" / "formats.md"
START, END = "<!-- table: python benchmarks/formats.py -->", "<!-- end of table -->"


def rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file, what it is, what happens) of every picture in a folder of scenes, in order of name."""
    with (folder / "manifest.csv").open(newline="") as file:
        known = {row["file"]: row["exercises"] for row in csv.DictReader(file)}
    for path in sorted(folder.iterdir()):
        if path.suffix != ".csv":
            yield path.name, known.get(path.name, ""), outcome(path)


def outcome(path: Path) -> str:
    """Open a picture and read it whole: what came, or the sentence of the refusal without the file's name."""
    try:
        with open_source(path) as source:
            for window in blocks(source):
                source.read(window)
                source.read_mask(window)
            return f"**yes**: {described(source)}"
    except SourceError as error:
        return "refused: " + error.message.removeprefix(f"{path.name}: ")


def described(source: Source) -> str:
    """Size, bands, type, and what lies beside the pixels."""
    parts = [f"{source.height} x {source.width}, {source.bands} band{'s' * (source.bands > 1)} {source.dtype}"]
    if source.nodata is not None:
        parts.append(f"nodata {source.nodata[0]:.9g}")
    if source.alpha is not None:
        parts.append("alpha")
    if source.has_mask:
        parts.append("mask")
    return ", ".join(parts) + "".join(f"; {note}" for note in source.warnings)


def table(folder: Path) -> str:
    """The table as Markdown, and its sum."""
    found = list(rows(folder))
    through = sum(result.startswith("**yes**") for *_, result in found)
    lines = [f"{through} of {len(found)} files go through, {len(found) - through} are refused.", ""]
    lines += ["| file | what it is | goes through? |", "|---|---|---|"]
    lines += [f"| `{name}` | {_cell(what)} | {_cell(result)} |" for name, what, result in found]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page_with(text: str) -> str:
    """The page with its table replaced."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{text}\n{END}{tail}"


def main() -> int:
    folder = SHARED / "data" / "scenes"
    if not folder.is_dir():
        print(f"no scenes at {folder}; name the folder above by DITIC_SHARED", file=sys.stderr)
        return 2
    page = page_with(table(folder))
    if "--check" in sys.argv:
        same = page == PAGE.read_text(encoding="utf-8")
        print("docs/formats.md is up to date" if same else "docs/formats.md differs; run python benchmarks/formats.py")
        return 0 if same else 1
    PAGE.write_text(page, encoding="utf-8")
    print(text_sum(page))
    return 0


def text_sum(page: str) -> str:
    """The line that sums the table up."""
    return page.partition(START)[2].strip().splitlines()[0]


if __name__ == "__main__":
    raise SystemExit(main())
