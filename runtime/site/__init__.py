"""The pages that `python -m runtime view` serves: an index of artifacts, Netron on each, heat maps, the report."""
