"""The stage for one part: every image asked for once, each with a fate, three outputs and a receipt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, committing
from vila_data.core.records import BadRecord, Record
from vila_data.core.store import Store
from vila_data.download.assemble import Assembly
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import Network
from vila_data.download.intake import Intake, fetch_all


def download_part(
    store: Store,
    part: Part,
    records: Iterable[Record | BadRecord],
    config: DownloadConfig,
    inputs: str,
    progress: Callable[[int], None] | None = None,
    *,
    network: Network | None = None,
) -> Receipt:
    """Fetch and normalise a part's images, write its tar and tables, and commit them with a receipt for `inputs`.

    The outputs' bytes depend on the records and on what the servers answer, not on timing
    or `concurrency`. `records` is read lazily, in a thread of its own; memory does not grow
    with the part. `progress` is called with the number of images finished since its last call.

    Raises:
        StorageError: the store or its scratch folder cannot be written.
        RunError: this machine is out of file descriptors.
        UsageError: the engine cannot take these records, or is not installed.
    """
    report = progress or _silent
    with committing(store, part.receipt("download"), inputs) as outputs:
        intake = Intake(outputs.folder / "spool")
        try:
            if config.engine == "img2dataset":
                from vila_data.download.engine_img2dataset import fetch_with_img2dataset

                fetch_with_img2dataset(intake, records, config, report)
            else:
                _run(fetch_all(intake, records, config, network or Network(), report))
            assembly = Assembly(part, intake, outputs)
            assembly.write()
            outputs.counts = assembly.counts()
        finally:
            intake.close()
    if outputs.receipt is None:
        raise RuntimeError("a committed part has a receipt")
    return outputs.receipt


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also where this thread has a running event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="vila-download") as thread:
        thread.submit(asyncio.run, work).result()


def _silent(_: int) -> None:
    return None
