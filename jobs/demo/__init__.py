"""The demo: drawn, captioned scenes with known faults, served on loopback, and the whole way."""
