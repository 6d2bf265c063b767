"""The page on which people try the models: its HTML, its style and its scripts, which page.py joins to one file."""
