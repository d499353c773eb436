"""Decoders of file formats: bytes become chunks of records as lines of JSON text.

In reading order:

- ``chunks.py``: chunks of whole lines, numbered
- ``json_records.py``: JSON Lines, and which .json file is an array
- ``json_array.py``: a JSON array as lines
- ``cells/``: CSV, TSV and spreadsheets
- ``columnar.py``: Parquet and Arrow IPC
- ``arrow_rows.py``: Arrow rows as JSON
- ``row_sizes.py``: how much JSON an Arrow row becomes
- ``parquet_pages.py``: checks Parquet pages before they are decompressed
- ``parquet_text_sizes.py``: text size of delta-encoded Parquet pages
- ``thrift.py``: Thrift's compact protocol, for Parquet page headers
- ``ipc_messages.py``: decompressed sizes of Arrow IPC messages
"""
