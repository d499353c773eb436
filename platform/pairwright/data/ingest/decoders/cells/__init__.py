"""Decoders for tables of text cells: CSV files and spreadsheets.

In reading order:

- ``text_encodings.py``: text of other encodings as UTF-8
- ``delimiters.py``: recognises what separates the cells
- ``delimited.py``: CSV and TSV
- ``spreadsheets.py``: one sheet of an Excel workbook
"""
