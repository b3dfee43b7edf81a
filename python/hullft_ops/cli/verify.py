"""``hullft-ops verify``: whether a datastore is as it was written."""

from pathlib import Path

import tyro

from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.terminal import echo


def verify(store: tyro.conf.Positional[Path]) -> None:
    """Read a whole datastore, and compare it with what was written.

    Args:
        store: folder of the datastore.
    """
    datastore = Datastore.open(store)
    echo(*datastore.summary(), "everything is as it was written")
