"""A Report as text, Markdown or HTML."""
