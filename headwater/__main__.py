"""The command ``headwater``: interruptions are handled before anything slow is imported."""

from headwater.cli.interruption import handled


def main() -> None:
    """Run the command line."""
    with handled():
        from headwater.cli.app import main as run

        run()


if __name__ == "__main__":
    main()
