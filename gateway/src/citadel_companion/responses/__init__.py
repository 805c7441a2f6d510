"""Conversations: OpenAI's `/v1/responses`, made of chats at the gateway and of what is kept here."""

from citadel_companion.responses.routes import routes

__all__ = ["routes"]
