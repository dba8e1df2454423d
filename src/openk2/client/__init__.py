"""The remote ChatProvider: any OpenAI-compatible endpoint."""

from __future__ import annotations

from openk2.client.remote import RemoteProvider

__all__ = ["RemoteProvider"]
