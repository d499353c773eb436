"""The pages of an evaluation and of a comparison, ``report.html``: how good a model is, how sure, and where it fails.

In reading order:

- ``verdict.py``: the sentences at the top
- ``page_tables.py``: tables of metrics with pictures in their rows, from ``pairwright/pages/``
- ``quality_sections.py``: accuracy, slices, poison and annotators
- ``length_section.py``: length, form and authors
- ``curve_sections.py``: calibration, best-of-N, learning curves
- ``origin_sections.py``: lineage and method
- ``pair_examples.py``: the worst errors and the most doubtful pairs, with their texts
- ``run_history.py``: the learning curves of the run that made the model, and what it was trained on
- ``lineage.py``: the tables behind the pairs, back to the sources
- ``model_page.py``: the page as a whole, with ``model_page.html.j2``
- ``comparison_sections.py``: models with their seeds, differences, slices and lineage of a comparison
- ``comparison_page.py``: its page as a whole, with ``comparison_page.html.j2``
"""
