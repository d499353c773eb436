"""Sources of an ingestion, up to numbered chunks of records.

In reading order:

- ``source.py``: one source: where it is, its file format, its identity
- ``file_search.py``: finds files in folders, patterns and prefixes
- ``foreign_files.py``: what to do with files that are no sources
- ``listing.py``: lists the sources that a user names
- ``connection_urls.py``: parses URLs of databases, lakehouse tables, datasets and topics
- ``database_rows.py``: SQL queries as lines of JSON, read-only and within limits
- ``staged_rows.py``: rows of external sources as staged files
- ``source_bytes.py``: reads stored bytes, local and remote
- ``splits.py``: divides a source into input splits, and reads one
- ``scan.py``: hashes, splits and reads all sources, in tasks
"""
