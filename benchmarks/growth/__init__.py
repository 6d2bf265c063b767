"""The growth of costs: processor time and memory against one size at a time, with the slope."""
