"""Several processes, on one machine or on several, that share a model or the work."""
