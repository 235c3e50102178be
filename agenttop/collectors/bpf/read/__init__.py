"""From maps to rows."""
