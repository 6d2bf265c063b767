"""Choose a run from its budget: how long it may take, what it trains, and how it keeps to the clock.

It knows nothing of Lightning: `callbacks/budget.py` spends what is planned here.
"""
