"""Access to the machine: files, locks, terminal, devices, memory and the checkout that the program runs from.

This room knows nothing about models, data or runs.
"""
