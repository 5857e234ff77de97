"""The command line, as the tests of masks call it."""

from click.testing import CliRunner

from wsigen.cli.main import main


def run(*arguments: object) -> tuple[int, str]:
    """Run a command: its exit code, and what it printed. What is no exit of its own is raised."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output.strip()
