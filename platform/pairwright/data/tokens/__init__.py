"""Tokens: pairs become tokenised groups, memory-mapped.

A path to walk:
``tokenizer``            loads a fast tokenizer; its digest
``chat_template``        chooses and renders the chat template
``template_sandbox``     renders it in a child process, under limits
``template_coverage``    what a template leaves out of a conversation
``special_tokens``       special tokens that stand in texts
``conversation_tokens``  tokenises prompts with their completions
``tokenize_groups``      tokenises groups of pairs
``tokenize``             makes or finds the tokens table of a pairs version
``token_table``          a tokens table, memory-mapped
``token_files``          its files on this machine
``group_sizes``          sizes of groups, for planning
"""
