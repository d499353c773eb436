"""What was written for a version -> the version, or nothing left behind: a commit with its clearing up.

What no version names is deleted only where it is sure that none will: an answer that was lost on the way may be that of
a commit that was made. Then the files stay for `vacuum`.
"""

from collections.abc import Callable, Iterable

from pairwright.data.table.table import DataFile, Manifest, Table


def commit_written(
    table: Table, build: Callable[[Manifest | None], Manifest | None], written: Callable[[], Iterable[DataFile]]
) -> Manifest | None:
    """Commit what ``build`` returns, and delete what was written that the version does not name.

    Args:
        table: where.
        build: as for ``Table.commit``: called again on a newer version when another writer was first.
        written: every file that was written for it, asked at the end.

    Raises:
        StoreError: as ``Table.commit``; what ``build`` raises goes through.
    """
    is_asked = False

    def watched(newest: Manifest | None) -> Manifest | None:
        nonlocal is_asked
        is_asked = False  # a lost race is a sure answer
        proposed = build(newest)
        is_asked = proposed is not None
        return proposed

    try:
        committed = table.commit(watched)
    except BaseException:
        if not is_asked:
            table.delete(written())
        raise
    named = {file.path for file in committed.all_files} if committed else set()
    table.delete([file for file in written() if file.path not in named])
    return committed
