"""Turn a corpus of text into token shards, on all cores. Every interruption can be resumed.

The stages, in order:

- The room `texts` finds the inputs and reads them as chunks of records.
- `encoding` hands the chunks to worker `processes`. The workers turn text into token ids (`tokenizing`); a result is an
  `encoded_batch`. `encoding` appends the results to `segments` on disk, and a journal lists the segments.
- `assigning` leaves out duplicates, and assigns each document to the training or the validation set by the hash of its text.
- `shards` writes the token shards.
- `report` prints the content of the corpus.

`pipeline` runs these stages in a `corpus_folder` and writes the manifest last. `cluster` runs the encoding on many machines with
datatrove. This room must not know models, training or PyTorch.
"""
