"""Turn text or token shards into batches of token windows.

A batch takes this path: a reader (`text` and `token_cache` for files of text, which the room `texts` reads, `formats` for folders
of token shards, both as a `TokenStream`) -> a dataset of windows (`dataset`, `mixture`) -> a sampler that picks the windows of
each batch (`sampler`) -> `TextDataModule` (`datamodule`) -> the LightningModule. `sources` connects the `data` settings with
readers and datasets. Shards behind a URL are read through `remote`. This package knows nothing about models, training or
checkpoints.
"""
