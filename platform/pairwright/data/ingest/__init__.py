"""Ingestion: sources of records become validated annotations.

A path to walk:
``sources/``          lists, hashes and splits sources; external sources by connection URL
``decoders/``         file formats: bytes become lines of JSON
``adapters/``         record formats: lines become native annotations
``fields/``           what adapters share: field paths, conversations, judgements
``prompts``           the prompt of a native record
``row_groups``        groups successive records of one completion each
``rules``             validates an annotation, whatever its format
``parse``             lines become validated annotations or rejections
``shards``            parses one input split and writes it as uncommitted files
``dedup``             refuses records whose id is taken
``reconcile``         which sources are added, skipped or replaced; the next manifest
``ingest``            the whole ingestion, up to the commit
``ingest_summary``    its summary, as text and JSON
``quality_warnings``  counts annotations that are valid but odd
``dry_run``           the same without a commit: `validate`
``format_pages``      lists of formats: `formats`, docs/formats.md
"""
