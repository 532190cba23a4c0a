"""models list, import and export: the sets of weights at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ditic_stream import console
from ditic_stream.errors import ConfigError
from ditic_stream.verbs.options import Json, Overwrite, Quiet


def list_models(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the weight sets at hand: name, parameters, bytes, licence, sha256.

    Those of the package come first, then those that `models import` brought into the model folder: $DITIC_MODELS, or
    ~/.local/share/ditic-stream/models.

    \b
    Example:  ditic-stream models list --json
    """
    from ditic_stream.summary import weight_sets

    for found in weight_sets():
        if "problem" in found:
            console.note(f"warning: {found['name']}: {found['problem']}", quiet=quiet)
            line = f"{found['name']:<14} damaged"
        else:
            line = (
                f"{found['name']:<14} {found['parameters'] / 1e6:7.2f} M parameters  "
                f"{console.size(found['bytes']):>8}  {found['licence']}  sha256 {found['sha256'][:16]}..."
            )
        console.emit(found, as_json=as_json, lines=[line], quiet=quiet)


def import_model(
    file: Annotated[
        Path, typer.Argument(help="A released checkpoint (q3_merge_ema.pt), a bundle, or weights that `train` made.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it (default: ditic-0.6b:q3 for q3_merge_ema.pt).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON with the sizes of its backbones, if they are not the released ones.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace weights that have the name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a checkpoint of the paper's authors, a bundle, or weights that `train` made, into the model folder.

    The pickle is read without running anything in it, every name and shape is checked, and what is not a whole
    checkpoint is refused with the list of what differs.  The licence is shown.

    \b
    Example:  ditic-stream models import q3_merge_ema.pt
    Your own: ditic-stream models import runs/mine/weights.safetensors --name mine
    Tuned:    ditic-stream models import runs/mine/weights.safetensors --name ditic-0.6b:mine
    """
    from ditic_stream.errors import CheckpointError
    from ditic_stream.models.folder import is_bundle
    from ditic_stream.models.own import import_set, is_set
    from ditic_stream.models.paper.checkpoint import import_bundle, import_checkpoint
    from ditic_stream.models.paper.config import OFFICIAL, PaperConfig
    from ditic_stream.models.paper.tuned import import_tuned, is_weights
    from ditic_stream.summary import weight_facts

    try:
        with console.interruptible("nothing was kept; run the same command again"):
            if is_bundle(file):
                path, record = import_bundle(file, name=name, overwrite=overwrite)
            elif is_set(file):
                path, record = import_set(file, name=name, overwrite=overwrite)
            elif is_weights(file):
                path, record = import_tuned(file, name=name, overwrite=overwrite)
            else:
                sizes = PaperConfig.load(config) if config is not None else OFFICIAL
                path, record = import_checkpoint(file, name=name, config=sizes, overwrite=overwrite)
    except CheckpointError as error:
        # A result, and so printed even when quiet.
        for difference in error.differences:
            typer.echo(json.dumps({"difference": difference}) if as_json else difference)
        raise
    console.note(f"licence: {record.licence}. {record.licence_note}", quiet=quiet)
    console.emit(
        weight_facts(path, record), as_json=as_json, quiet=quiet,
        lines=[f"{record.name}: {path}, {console.size(record.size)}, sha256 {record.sha256}"],
    )  # fmt: skip


def export_model(
    name: Annotated[str, typer.Argument(help="As `models list` names it, e.g. ditic-0.6b:q3.")],
    out: Annotated[Path | None, typer.Argument(help="The bundle, a zip file (default: ditic-0.6b-q3.zip).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack weights of the model folder into one file, to `models import` where there is no network.

    \b
    Example:  ditic-stream models export ditic-0.6b:q3 q3.zip
    """
    from ditic_stream.models import folder

    found = folder.find(name)
    if found is None:
        known = ", ".join(folder.names()) or "none"
        raise ConfigError(f"{name} is not in {folder.models_folder()}, which has {known}; import it first")
    path, record = found
    target = out or Path(f"{name.replace(':', '-')}.zip")
    with console.interruptible("nothing was written; run the same command again"):
        size = folder.export(path, record, target, overwrite=overwrite)
    console.note(f"licence: {record.licence}. {record.licence_note}", quiet=quiet)
    facts = {"bundle": str(target), "bytes": size, "name": record.name, "sha256": record.sha256}
    console.emit(facts, as_json=as_json, lines=[f"{target}: {record.name}, {console.size(size)}"], quiet=quiet)
