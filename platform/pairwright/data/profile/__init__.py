"""The report on an annotations table, as metrics and as one HTML page. No ray, no torch.

In reading order:

- ``compact_rows.py``: what is kept of an annotation: lengths, hashes and marks instead of texts
- ``comparison_blocks.py``: comparisons of two completions, as matrices
- ``agreement.py``: how far annotators agree, and Krippendorff's alpha
- ``suspicious.py``: repeated texts, uniform judgements, chat-template marks, score outliers
- ``counts.py``: counts whole prompts, in tasks
- ``aggregates.py``: merges what tasks counted; counts of quarantined records; growth over the versions
- ``annotators_and_models.py``: the rows on each annotator and model, and the strengths of models
- ``profile_metrics.py``: computes the metrics from the aggregates
- ``highlights.py``: the sentences at the top
- ``profile_schema.py``: the contract of the JSON
- ``profile_page.py``: renders the page, with ``page.html.j2``
- ``table_report.py``: the report as a whole: from a table to its page
"""
