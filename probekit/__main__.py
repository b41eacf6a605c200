"""``python -m probekit``."""

from probekit.cli.main import cli

cli()
