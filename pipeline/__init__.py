"""What happens to one shard, and to the corpus: plain functions, shard in, shard out."""
