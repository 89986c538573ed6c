"""A Hugging Face data set by name: the data files of one split, which our own readers then read by range."""

from __future__ import annotations

from vila_data.corpora.config import TextConfig
from vila_data.corpora.rows import unreadable


class NoDataFiles(Exception):
    """A data set whose files cannot be told; the message says why and what to do."""


def data_files(config: TextConfig) -> tuple[str, ...]:
    """Paths or `hf://` URLs of a data set's files for `config.split`, as `datasets` finds them; nothing is downloaded.

    `skip(n)` of a streamed data set reads all rows before the n-th, so parts read slices of files instead.

    Raises:
        NoDataFiles: no such data set, configuration or split, or files that are no rows.
    """
    import datasets

    assert config.dataset is not None
    try:
        builder = datasets.load_dataset_builder(config.dataset, config.config, revision=config.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise NoDataFiles(f"datasets cannot open {config.dataset!r}: {error}") from error
    found = builder.config.data_files or {}
    if config.split not in found:
        raise NoDataFiles(f"{config.dataset!r} has no split {config.split!r}; it has {', '.join(map(str, found))}")
    files = tuple(map(str, found[config.split]))
    problem = next((problem for problem in map(unreadable, files) if problem is not None), None)
    if problem is not None or getattr(builder.config, "field", None) is not None:
        raise NoDataFiles(
            f"{config.dataset!r} is no data set of plain rows ({files[0]}); {problem or 'name its files'}"
        )
    return files
