"""Tables, figures and pages, from results as they are stored."""

from probekit.reports.run import run_table
from probekit.reports.tables import Table

__all__ = ["Table", "run_table"]
