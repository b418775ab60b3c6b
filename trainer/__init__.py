"""The token stream, the language model that reads it, and its training loop."""
