"""Sources of an ingestion, up to numbered chunks of records.

A path to walk:
``source``           one source: where it is, its file format, its identity
``file_search``      finds files in folders, patterns and prefixes
``listing``          lists the sources that a user names
``connection_urls``  parses URLs of databases, lakehouse tables, datasets and topics
``source_bytes``     reads stored bytes, local and remote
``splits``           divides a source into input splits, and reads one
``scan``             hashes, splits and reads all sources, in tasks
"""
