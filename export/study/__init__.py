"""What it costs a model to compute another function in GELU's place: the parts of `python -m export.gelu`."""
