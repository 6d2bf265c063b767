"""Choose the model and the length of a run by its budget, and plan how the run keeps to the clock.

This room knows nothing of Lightning: `callbacks/budget.py` carries out the plan.
"""
