"""Several processes, on one machine or many, that train one model together: `launch` starts them, `ranks` lets them find each
other and exchange values, `strategy` and `fsdp` share the model between them, and `requeue` resumes the run of a restarted job.

This room does not know the training loop, the callbacks or the data: they ask it which process they are in.
"""
