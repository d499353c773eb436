"""The report on an annotations table, as metrics and as one HTML page. No ray, no torch.

A path to walk, in the order in which an annotation is counted:

- ``compact_rows``: what is kept of an annotation: lengths, hashes and marks instead of texts
- ``comparison_blocks``: comparisons of two completions, as matrices
- ``agreement``: how far annotators agree, and Krippendorff's alpha
- ``suspicious``: repeated texts, uniform judgements, chat-template marks, score outliers
- ``counts``: counts whole prompts, in tasks
- ``aggregates``: merges what tasks counted; counts of quarantined records; growth over the versions
- ``annotators_and_models``: the rows on each annotator and model, and the strengths of models
- ``profile_metrics``: computes the metrics from the aggregates
- ``highlights``: the sentences at the top
- ``profile_schema``: the contract of the JSON
- ``profile_page``: renders the page, with ``page.html.j2``
- ``table_report``: the report as a whole: from a table to its page
"""
