"""Near-duplicate prompts: MinHash LSH proposes candidates, exact comparison verifies them.

In reading order:

- ``normalize.py``: the compared text of a prompt, its shingles and word n-grams
- ``minhash.py``: MinHash signatures, banded into keys (LSH)
- ``key_index.py``: a sorted index of keys, and the candidates that share them
- ``verify.py``: exact comparison of candidates: Jaccard similarity, shared n-grams
- ``evaluation_sets.py``: evaluation sets by file, folder, URL or table, and their prompts
- ``find.py``: finds the prompts to exclude, in two passes over the table
- ``exclude_similar.py``: drops the groups of those prompts, and counts them
"""
