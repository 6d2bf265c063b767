"""Charts of runs, drawn with matplotlib from what `runs.reader` reads. They know nothing of pages, models or training."""
