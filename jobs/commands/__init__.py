"""The `pixelese` command line, one file a command. Heavy imports live inside the commands."""
