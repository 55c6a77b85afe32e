"""`python -m mate_edge`: the command line."""

from mate_edge.cli import main

if __name__ == "__main__":
    main()
