"""The whole line, from data to a report: what `python -m runtime run` is made of."""
