"""What is stored and exchanged: the declaration, records, shards, fingerprints and the catalog."""
