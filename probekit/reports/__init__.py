"""Tables, figures and pages, from results as they are stored."""

from probekit.reports.demo import demo_table
from probekit.reports.tables import Table

__all__ = ["Table", "demo_table"]
