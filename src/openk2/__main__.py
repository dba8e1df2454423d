"""`python -m openk2`: the same as the command `openk2`."""

from openk2.cli.main import main

if __name__ == "__main__":
    main()
