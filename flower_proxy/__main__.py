"""The entry point of ``flower-proxy`` and ``python -m flower_proxy``."""

from flower_proxy.cli.signals import exit_on_interrupt


def main() -> None:
    """Run the command line; Ctrl-C also works while modules are being imported."""
    exit_on_interrupt()
    from flower_proxy.cli.main import main

    main()


if __name__ == "__main__":
    main()
