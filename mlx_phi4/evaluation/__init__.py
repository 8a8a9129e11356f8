"""How well a model does on data with known answers."""
