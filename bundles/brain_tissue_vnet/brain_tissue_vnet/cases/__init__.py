"""Cases of T1 data sets: searched (`folders`, `bids`, `layouts`) or listed (`listed`), then checked (`finding`)."""

from __future__ import annotations

from .finding import find_cases, scan_cases
