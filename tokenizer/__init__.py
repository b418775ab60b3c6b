"""The dynamic visual tokenizer: an image becomes a variable number of codes (arXiv 2309.04669)."""
