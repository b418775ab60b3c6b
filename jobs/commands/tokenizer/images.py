"""How a command is told which images to work on."""

CORPUS_HELP = "CORPUS, CORPUS@vN or CORPUS@vN:split: the images to work on."
