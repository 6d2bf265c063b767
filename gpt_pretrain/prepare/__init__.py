"""A corpus of text into shards of tokens, on all cores, and after any interruption on from where it was."""
