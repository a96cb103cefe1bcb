"""What may be shown and stored of a value; the same rules hold for events, approvals and spans."""

from __future__ import annotations

from agenthelm.tracing.marks import Redacted
from agenthelm.tracing.redaction import Hook, looks_secret, masked
from agenthelm.tracing.scrub import MASK, scrub, veiled

__all__ = ["MASK", "Hook", "Redacted", "looks_secret", "masked", "scrub", "veiled"]
