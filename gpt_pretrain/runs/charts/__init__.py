"""Charts of runs, drawn with matplotlib from the data of `runs.reader`. This package must not know pages, models or training."""
