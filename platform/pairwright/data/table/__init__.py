"""The versioned table.

In reading order:

- ``manifest.py``: what a version says about itself
- ``table.py``: tables, versions and files: reads and commits
- ``arrow_io.py``: encodes and verifies data files
- ``commit.py``: commits written files or deletes them; staging folders
- ``table_errors.py``: messages for URLs that hold no table
- ``inspect.py``: describes a version: totals, lineage, sample
- ``version_log.py``: lists versions, and what each changed; restores an old one
- ``diff.py``: row-level diff of two versions
- ``vacuum.py``: removes unnamed files and old versions
- ``compact.py``: merges small files
- ``delete_rows.py``: rewrites files without the rows that match
- ``erase.py``: erases annotators and prompts, with verification
"""
