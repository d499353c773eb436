"""What the HTML pages are made of: pictures, tables, sections and texts. No data, no model, no network.

In reading order:

- ``svg_charts.py``: intervals, bars, columns and curves as SVG
- ``page_sections.py``: tables, sections, sentences and examples as plain records
- ``word_differences.py``: which words of two texts differ
- ``html_pages.py``: renders records through ``section_page.html.j2``, with ``page_style.css`` and ``example_filter.js``
"""
