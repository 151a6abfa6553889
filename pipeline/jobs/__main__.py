"""`python -m pipeline.jobs` runs the control worker."""

from __future__ import annotations

from pipeline.jobs.worker import run_control_worker

run_control_worker()
