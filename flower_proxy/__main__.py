"""``python -m flower_proxy`` is ``flower-proxy``."""

from flower_proxy.cli.main import main

main()
