"""``python -m rapkernels`` is the command ``rapkernels``."""

from rapkernels.cli import main

if __name__ == "__main__":
    main()
