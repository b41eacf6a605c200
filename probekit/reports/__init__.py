"""Tables and figures, from results as they are stored."""

from probekit.reports.tables import Table, demo_table

__all__ = ["Table", "demo_table"]
