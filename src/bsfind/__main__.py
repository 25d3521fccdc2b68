"""`python -m bsfind`: the same as the `bsfind` command."""

from bsfind.cli.main import main

if __name__ == "__main__":
    main()
