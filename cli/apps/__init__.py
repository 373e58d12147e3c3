"""Commands that start something to look at or to talk to: a chat, a gallery of results, a server."""
