"""The report page: what a corpus holds and how it came about, as one self-contained HTML file."""
