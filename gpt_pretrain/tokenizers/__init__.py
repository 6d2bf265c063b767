"""Tokenizers turn text into token ids and back.

Each kind has its own file and follows the protocol in `base`. `build` makes a tokenizer from its name. This room must not know
models, data sets, configuration files or torch.
"""
