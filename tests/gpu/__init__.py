"""What holds on a GPU: run by `make check-gpu`, skipped where there is none."""
