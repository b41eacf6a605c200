"""Tasks: rows with known truth, by name."""

from probekit.tasks.registry import Task, get_task, load_task_rows, register, task_names

__all__ = ["Task", "get_task", "load_task_rows", "register", "task_names"]
