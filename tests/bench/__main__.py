"""Entry point of ``python -m tests.bench``, which compares flower-proxy with stock Flower."""

from tests.bench.cost import main

main()
