"""Read files of any kind, or a dataset, as documents of text.

`finding` and `inputs` find the files. `reading` reads their bytes from any position and cuts them into `chunks`: `containers/`
opens compressed files and archives, `parquet/` and `datasets/` limit what tables can take, and `records/` finds the text in a
record. `text` reads files as one text. This room knows nothing about token shards, models or training, and does not import
PyTorch.
"""
