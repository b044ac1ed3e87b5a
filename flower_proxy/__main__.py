"""``python -m flower_proxy`` is ``flower-proxy``."""

from flower_proxy.command import main

main()
