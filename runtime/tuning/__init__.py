"""What `python -m runtime tune` is made of: which forms to try, how they are raced, judged and chosen."""
