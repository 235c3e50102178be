"""agenttop: a top for the tail latency of AI agents on Linux."""

__version__ = "0.1.0"
