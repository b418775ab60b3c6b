"""Ray jobs that spread the pipeline over a cluster, and the `pixelese` command line."""
