"""`python -m c2r.cli`."""

from c2r.cli import main

main()
