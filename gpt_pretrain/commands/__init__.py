"""Everything that a command line starts: the entry scripts' work, the commands of `gpt-pretrain`, and how errors are reported.

This is the top room: it may use all others, and no other room imports it.
"""
