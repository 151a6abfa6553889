"""`python -m pipeline.compliance`: the table of clauses, for docs/security.md."""

from __future__ import annotations

import sys

from pipeline.compliance.markdown import clause_table

if __name__ == "__main__":
    sys.stdout.write(clause_table())
