"""Turn a corpus of text into token shards, on all cores, with every interruption resumable.

The pipeline, in order: the room `texts` finds the inputs and reads them as chunks of records; `encoding` hands the chunks to
worker `processes`, which turn them into token ids (`tokenizing`, whose result is an `encoded_batch`), and appends the results to
`segments` on disk, each listed in a journal; `assigning` leaves out duplicates and assigns each document to the training or the
validation set by the hash of its text; `shards` writes the token shards; `pipeline` runs these stages in a `corpus_folder` and
writes the manifest last; `report` prints what the corpus contains. `cluster` runs the encoding on many machines with datatrove.
This room must not know models, training or PyTorch.
"""
