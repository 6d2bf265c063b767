"""Check the regular expressions of strangers' tokenizers before any text is split by them: syntax, graph and cost."""
