"""The recipe of archive-1.ditic.zip to archive-3.ditic.zip: run once a format number, never again.

    python tests/golden/make_archive.py

A made-up scene of 300 x 420 pixels, uint16, four bands, nodata 0 in a corner of all, by `tiny-1` in tiles of 256.
Beside it goes the SHA-256 of every tile's decoded latents, which every machine has to reproduce.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    from pictures import GEO_TAGS, landscape

    import ditic_stream

    bands = np.concatenate([landscape(300, 420, 7), landscape(300, 420, 8)[..., :1]], 2).astype(np.uint16) * 16 + 100
    bands[:90, :130] = 0
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "golden.tif"
        tags = [*GEO_TAGS, (42113, "s", 2, "0", True)]
        tifffile.imwrite(scene, bands, photometric="minisblack", planarconfig="contig", metadata=None, extratags=tags)
        target = HERE / "archive-3.ditic.zip"  # when there was format 2 alone, or 1, the same call made those
        ditic_stream.compress(scene, target, model="tiny-1", tile=256, quality=60, workers=1)
    (HERE / "archive-3.json").write_text(json.dumps(latents(target), indent=1) + "\n")


def latents(path: Path) -> dict[str, str]:
    """SHA-256 of values and scale indexes of every tile, by key."""
    from ditic_stream.archive import open_archive
    from ditic_stream.codec import load_codec

    with open_archive(path) as archive:
        manifest, codec = archive.manifest, load_codec(archive.manifest.model.name)
        found = {}
        for key in archive.grid.keys():  # noqa: SIM118  (a generator of tiles)
            core = archive.grid.latent_core(key)
            latent = codec.decode_symbols(archive.record(key), 2, core.height, core.width, manifest.q)
            data = latent.values.astype("<i2").tobytes() + latent.scales.tobytes()
            found[str(key)] = hashlib.sha256(data).hexdigest()
    return found


if __name__ == "__main__":
    main()
