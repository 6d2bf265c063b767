"""Charts of runs, drawn with matplotlib from what `runs.reader` reads. This package must not know pages, models or training."""
