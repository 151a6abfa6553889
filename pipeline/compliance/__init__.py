"""What the service does about security, which clauses that serves, and what is seen of it here and now."""

from __future__ import annotations
