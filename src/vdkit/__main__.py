"""``python -m vdkit`` is the ``vdkit`` command."""

from vdkit.cli.main import run

if __name__ == "__main__":
    run()
