"""`python -m graphbuild_train`, which `accelerate launch` starts."""

from graphbuild_train.cli import main

main()
