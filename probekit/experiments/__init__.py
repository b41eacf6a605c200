"""Experiments: compositions of the library's steps, with no mathematics of their own."""

from probekit.experiments.demo import judge_demo, run_demo
from probekit.experiments.steps import Step, demo_steps

__all__ = ["Step", "demo_steps", "judge_demo", "run_demo"]
