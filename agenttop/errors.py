"""The one exception that reaches the user as a line of text."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: printed as ``agenttop: TEXT``, exit code 2."""
