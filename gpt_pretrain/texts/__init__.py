"""Read files of any kind, or a dataset, as documents of text.

`finding` and `inputs` find the files; `reading` (with `decompression` and `tables`) reads their bytes from any position and cuts
them into `chunks` of records; `records` finds the text in a record; `text` reads files as one text. This room knows nothing about
token shards, models or training, and does not import PyTorch.
"""
