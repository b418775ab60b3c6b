"""Versions in the formats of other loaders, document by document as the stream builds them."""
