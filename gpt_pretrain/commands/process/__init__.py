"""The process of a command: Hydra's job, the context of a run, the processes of several devices, errors and exit codes."""
