"""The health monitor, called the doctor in settings and output: it detects overfitting, a plateau, a spike, a train/val gap,
constant clipping, slow data loading and non-finite numbers in a run. The thresholds are `callbacks.doctor` in conf/,
`warning_signs` has one function for each sign, and `health_monitor` decides when a sign is new.

This room sees plain numbers only. It knows neither torch nor Lightning; `training/callbacks/health.py` connects it to a run.
"""
