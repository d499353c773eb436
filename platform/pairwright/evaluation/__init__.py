"""Evaluates and uses exported reward models. No Ray.

In reading order:

- ``load_exported.py``: an exported model, verified, and the rules for its input
- ``rewards.py``: rewards of groups under a token budget, shared by evaluation and scoring
- ``evaluate.py``: a split's groups as rows with their rewards
- ``group_rows.py``: these rows, merged to the same bytes by any number of workers, and as flat arrays
- ``text_features.py``: lists, headings, code, refusals and flattery in a text
- ``single_annotations.py``: the single annotations behind a pairs table
- ``degenerate_texts.py``: rewards of texts that are no answer to anything
- ``statistics/``: every metric, with its interval, as a pure function of arrays
- ``influence/``: what each annotator and author teaches
- ``evaluation_report.py``: builds ``report.json``
- ``reports/``: its shape, its text, and the files of findings
- ``page/``: the page beside the report
- ``benchmarks/``: public benchmarks by file, each by its own rules
- ``requests.py``: input lines and table rows as scoring requests
- ``score.py``: the rewards of scoring requests
- ``reference_rewards.py``: mean and standard deviation of rewards on reference completions
- ``score_files.py``: the output of a scoring run
"""
