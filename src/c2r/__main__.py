"""`python -m c2r`, which torchrun starts on each rank."""

from c2r.cli import main

main()
