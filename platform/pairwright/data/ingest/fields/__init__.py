"""What adapters share: field paths, conversations, judgements.

In reading order:

- ``adapter.py``: the adapter contract, its errors and type checks
- ``paths.py``: field paths such as ``answers[].text``
- ``field_table.py``: a compiled table of field paths
- ``conversation_turns.py``: parses conversations in every form
- ``replies.py``: one prompt and one reply of each side
- ``judgements.py``: ranks, scores and preference strengths
- ``other_fields.py``: fields that no path reads
- ``field_layout.py``: the adapter for every table of field paths
- ``key_samples.py``: the keys of records of an unknown layout, and examples of their values
- ``winner_words.py``: what each word of a judgement may mean
- ``suggested_fields.py``: a table of field paths for an unknown layout
- ``unknown_layout.py``: stops early at a source that no layout can read
"""
