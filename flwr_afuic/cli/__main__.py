"""``python -m flwr_afuic.cli`` is ``flwr-afuic``."""

from flwr_afuic.cli import main

if __name__ == "__main__":  # spawned workers import this module under another name
    main()
