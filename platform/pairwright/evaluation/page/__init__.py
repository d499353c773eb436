"""The page of an evaluation, ``report.html``: how good the model is, how sure that is, and where it fails.

In reading order:

- ``svg_charts.py``: intervals and curves as SVG
- ``verdict.py``: the sentences at the top
- ``page_tables.py``: tables with pictures in their rows
- ``quality_sections.py``: accuracy, slices, poison and annotators
- ``length_section.py``: length, form and authors
- ``curve_sections.py``: calibration, best-of-N, learning curves
- ``origin_sections.py``: lineage and method
- ``word_differences.py``: which words of two texts differ
- ``pair_examples.py``: the worst errors and the most doubtful pairs, with their texts
- ``run_history.py``: the learning curves of the run that made the model, and what it was trained on
- ``lineage.py``: the tables behind the pairs, back to the sources
- ``model_page.py``: renders the page, with ``model_page.html.j2`` and ``example_filter.js``
"""
