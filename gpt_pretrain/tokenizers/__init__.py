"""Tokenizers turn text into token ids and back.

Each kind has its own file and follows the protocol in `base`. `build` makes a tokenizer from its name. `formats/` reads the
vocabularies of other programs, `patterns/` checks their regular expressions, and `fast_encoding/` encodes large texts. This room
must not know models, data sets, configuration files or torch.
"""
