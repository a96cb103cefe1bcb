"""Who may say yes to a call that needs approval."""

from __future__ import annotations

from agenthelm.core.decisions import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.policy import PolicyHandler, PolicyRule
from agenthelm.core.prompt import CliHandler
from agenthelm.core.webhook import WebhookHandler

__all__ = [
    "ApprovalHandler",
    "ApprovalRequest",
    "AutoApprove",
    "AutoDeny",
    "CliHandler",
    "Decision",
    "PolicyHandler",
    "PolicyRule",
    "WebhookHandler",
]


class AutoApprove(ApprovalHandler):
    """Says yes to everything."""

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        """Approve."""
        return Decision(True, reason="approved automatically", approver="auto-approve")


class AutoDeny(ApprovalHandler):
    """Says no to everything; the default where nobody can be asked."""

    def __init__(self, reason: str = "no approval handler is configured") -> None:
        self.reason = reason

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        """Deny."""
        return Decision(False, reason=self.reason, approver="auto-deny")
