"""What adapters share: field paths, conversations, judgements.

A path to walk:
``adapter``             the adapter contract, its errors and type checks
``paths``               field paths such as ``answers[].text``
``field_table``         a compiled table of field paths
``conversation_turns``  parses conversations in every form
``replies``             one prompt and one reply of each side
``judgements``          ranks, scores and preference strengths
``other_fields``        fields that no path reads
``field_layout``        the adapter for every table of field paths
"""
