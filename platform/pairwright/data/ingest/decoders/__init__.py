"""How a source keeps its records: each layout's bytes in -> JSON text of records, one a line, out."""
