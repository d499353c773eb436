"""Decoders of file formats: bytes become chunks of records as lines of JSON text.

A path to walk:
``chunks``              chunks of whole lines, numbered
``json_records``        JSON Lines, and which .json file is an array
``json_array``          a JSON array as lines
``delimited``           CSV and TSV
``columnar``            Parquet and Arrow IPC
``arrow_rows``          Arrow rows as JSON
``row_sizes``           how much JSON an Arrow row becomes
``parquet_pages``       checks Parquet pages before they are decompressed
``parquet_text_sizes``  text size of delta-encoded Parquet pages
``thrift``              Thrift's compact protocol, for Parquet page headers
``ipc_messages``        decompressed sizes of Arrow IPC messages
"""
