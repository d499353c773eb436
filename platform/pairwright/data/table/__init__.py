"""The versioned table.

A path to walk:
``manifest``      what a version says about itself
``table``         tables, versions and files: reads and commits
``arrow_io``      encodes and verifies data files
``commit``        commits written files or deletes them; staging folders
``table_errors``  messages for URLs that hold no table
``inspect``       describes a version: totals, lineage, sample
``version_log``   lists versions, and what each changed
``diff``          row-level diff of two versions
``vacuum``        removes unnamed files and old versions
``compact``       merges small files
``delete_rows``   rewrites files without the rows that match
``erase``         erases annotators and prompts, with verification
"""
