"""Mixed quantization: what int8 does to each layer alone, and which layers to leave in float."""

AUTO = "auto"  # the choice of `--quantize` that searches
MAX_DROP = 0.5  # percentage points
RANKING_IMAGES, SEARCH_IMAGES = 64, 512  # of the validation split: for one layer alone, for an assignment
