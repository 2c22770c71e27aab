"""`python -m training`: simulate, train, checkpoints."""

from training.cli import main

if __name__ == "__main__":
    main()
