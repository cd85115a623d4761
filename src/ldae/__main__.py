"""Run the command as `python -m ldae`."""

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main())
