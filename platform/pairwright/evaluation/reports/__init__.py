"""The report of an evaluation: its shape, its text, and the files of findings.

In reading order:

- ``report_schema.py``: the shape of ``report.json``
- ``report_file.py``: where the report lies, and what may be replaced there
- ``report_text.py``: the report as plain text
- ``comparison.py``: two models or more on the same pairs, and its text
- ``sweep_table.py``: the settings of a sweep, with the spread of their seeds
- ``finding_files.py``: what deserves a second look, as annotations in JSON Lines
- ``stored_temperature.py``: the temperature beside a model
"""
