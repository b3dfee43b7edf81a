"""The command of ``hullft-ops`` that describes the installation, or a datastore."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hullft_ops._terminal import echo
from hullft_ops.cli.errors import errors_of
from hullft_ops.collect_env import bug_report, collect_env, format_env

if TYPE_CHECKING:
    from hullft_ops.ttft.store.datastore import Datastore


def info(
    datastore: Annotated[
        Path | None, typer.Argument(help="A datastore to check and describe instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    as_report: Annotated[
        bool,
        typer.Option(
            "--report", help="Print a block for a bug report; no names, no paths."
        ),
    ] = False,
) -> None:
    """Print versions, build flags, devices and threads, or describe a datastore."""
    if as_report and (as_json or datastore is not None):
        typer.echo(
            "hullft-ops info: --report takes neither --json nor a datastore", err=True
        )
        raise typer.Exit(2)
    if datastore is not None:
        with errors_of("info"):
            echo(*describe(datastore, as_json=as_json))
    elif as_report:
        typer.echo(bug_report())
    else:
        env = collect_env()
        typer.echo(json.dumps(env, indent=2) if as_json else format_env(env))


def describe(path: Path, *, as_json: bool) -> list[str]:
    """What the datastore at ``path`` holds, in lines. Raises what `Datastore.open` raises."""
    from hullft_ops.ttft.store.datastore import Datastore

    store = Datastore.open(path)
    if not as_json:
        return description(path, store)
    # DEL is the one control character that JSON leaves as it is.
    return (
        json.dumps(asdict(store.manifest), indent=2)
        .replace("\x7f", "\\u007f")
        .split("\n")
    )


def description(path: Path, store: "Datastore") -> list[str]:
    """A datastore in lines: what is in it, and the sources of its texts."""
    manifest = store.manifest
    columns = [name for name in store.rows.column_names if name != "text"]
    entries = [
        ("texts", f"{manifest.count}"),
        ("embedder", f"{manifest.embedder}, {manifest.dim} dimensions"),
        ("metadata", ", ".join(columns) or "none"),
        ("search", f"{manifest.index}"),
    ]
    for source, shard in zip(manifest.sources, manifest.shards, strict=False):
        entries.append(("source", _source_line(source, shard.count)))
        entries += [
            ("", f"malformed {named}") for named in source.get("malformed_named", [])
        ]
    return [f"datastore {path}", *(f"  {name:<10} {value}" for name, value in entries)]


def _source_line(source: dict[str, Any], count: int) -> str:
    if not source:
        return f"{count} texts given by a program"
    line = (
        f"{source['settings']['source']}: {count} texts of {source['records']} records; left out: "
        f"{source['malformed']} malformed records, {source['near_empty']} near-empty texts, "
        f"{source['repeated']} repeated texts"
    )
    if not source.get("binary"):
        return line
    named = source.get("binary_named", [])
    more = ", ..." if source["binary"] > len(named) else ""
    return (
        f"{line}, {source['binary']} files that are not text ({', '.join(named)}{more})"
    )
