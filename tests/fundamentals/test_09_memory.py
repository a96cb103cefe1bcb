"""Memory has two sides: values by key, and texts found by meaning.

Values are private to a session. Texts belong to the namespace, the tenant boundary that no read ever crosses.
"""

from __future__ import annotations

from agenthelm import MemoryHub


async def test_sessions_share_texts_and_tenants_share_nothing() -> None:
    async with MemoryHub() as hub:
        ada = hub.create_context(session_id="ada", namespace="acme")
        await ada.write("city", "Lisbon")
        await ada.remember("The hotel in Lisbon was noisy")
        await ada.remember("Invoices go to accounting")

        bob = hub.create_context(session_id="bob", namespace="acme")
        assert await bob.read("city", default="nowhere") == "nowhere"
        assert await bob.recall("a hotel in Lisbon", top_k=1) == ["The hotel in Lisbon was noisy"]

        other = hub.create_context(session_id="ada", namespace="globex")
        assert await other.read("city") is None
        assert await other.recall("a hotel in Lisbon") == []
