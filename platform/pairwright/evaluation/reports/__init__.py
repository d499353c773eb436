"""The report of an evaluation: its shape, its text, and the files of findings.

In reading order:

- ``report_schema.py``: the shape of ``report.json``
- ``report_text.py``: the report as plain text
- ``finding_files.py``: what deserves a second look, as annotations in JSON Lines
"""
