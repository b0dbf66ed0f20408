"""``python -m server`` is ``nudge``."""

from server.cli import run

if __name__ == "__main__":
    run()
