"""The Jinja template of a sweep's report page."""
