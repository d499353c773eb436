"""Tokens: pairs become tokenised groups, memory-mapped.

In reading order:

- ``tokenizer.py``: loads a fast tokenizer; its digest
- ``chat_template.py``: chooses and renders the chat template
- ``template_sandbox.py``: renders it in a child process, under limits
- ``template_coverage.py``: what a template leaves out of a conversation
- ``special_tokens.py``: special tokens that stand in texts
- ``conversation_tokens.py``: tokenises prompts with their completions
- ``token_group.py``: a tokenised group, and the sizes of many for planning
- ``tokenize_groups.py``: tokenises groups of pairs
- ``tokenize.py``: makes or finds the tokens table of a pairs version
- ``token_table.py``: a tokens table, memory-mapped
- ``token_files.py``: its files on this machine
- ``column_files.py``: the sizes of the groups of a large table, memory-mapped
"""
