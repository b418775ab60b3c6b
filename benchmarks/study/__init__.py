"""The study behind docs/tokenizer.md: quantizers compared, and dynamic against fixed length."""
