"""The index of a table's ids, so that an ingestion reads only the data files that can hold one of its ids.

In reading order:

- ``index_files.py``: one index file: sorted hashes in blocks with checksums
- ``id_index.py``: the index of a data file, and the search for ids in indexes
- ``index_merges.py``: merges indexes into larger ones, and chooses those of a new version
- ``verify_table.py``: reads every file of a version, and compares hashes
"""
