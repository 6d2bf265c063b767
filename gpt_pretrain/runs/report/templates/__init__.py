"""The Jinja templates and the style sheet of report pages."""
