"""``python -m tests.bench`` prints what flower-proxy costs beside stock Flower."""

from tests.bench.cost import main

main()
