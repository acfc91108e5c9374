"""`python -m sgate_serve` is the `sgate` command."""

from sgate_serve.cli import script

if __name__ == "__main__":
    script()
