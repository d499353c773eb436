"""Ingestion: sources of records become validated annotations.

In reading order:

- ``sources/``: lists, hashes and splits sources; external sources by connection URL
- ``decoders/``: file formats: bytes become lines of JSON
- ``adapters/``: record formats: lines become native annotations
- ``fields/``: what adapters share: field paths, conversations, judgements
- ``prompts.py``: the prompt of a native record
- ``row_groups.py``: groups successive records of one completion each
- ``rules.py``: validates an annotation, whatever its format
- ``parse.py``: lines become validated annotations or rejections
- ``shards.py``: parses one input split and writes it as uncommitted files
- ``dedup.py``: refuses records whose id is taken
- ``reconcile.py``: which sources are added, skipped or replaced; the next manifest
- ``ingest.py``: the whole ingestion, up to the commit
- ``ingest_summary.py``: its summary, as text and JSON
- ``quality_warnings.py``: counts annotations that are valid but odd
- ``dry_run.py``: the same without a commit: `validate`
- ``findings_file.py``: its findings as CSV or JSON Lines
"""
