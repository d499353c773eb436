"""Near-duplicate prompts: MinHash LSH proposes candidates, exact comparison verifies them.

A path to walk:
``normalize``        the compared text of a prompt, its shingles and word n-grams
``minhash``          MinHash signatures, banded into keys (LSH)
``key_index``        a sorted index of keys, and the candidates that share them
``verify``           exact comparison of candidates: Jaccard similarity, shared n-grams
``evaluation_sets``  evaluation sets by file, folder, URL or table, and their prompts
``find``             finds the prompts to exclude, in two passes over the table
``exclude_similar``  drops the groups of those prompts, and counts them
"""
