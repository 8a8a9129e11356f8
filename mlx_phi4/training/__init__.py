"""Adapters of one's own: from files of examples to a folder that serves."""
