"""Introduces the packages: how the pipeline reads the tokenizers' fingerprints."""

from pipeline.corpus import TokenizerReaders


def tokenizer_readers() -> TokenizerReaders:
    """Readers of recorded digests; neither of them loads a model or imports torch."""
    from tokenizer import artifact, text

    return TokenizerReaders(image=artifact.read_fingerprint, text=text.read_fingerprint)
