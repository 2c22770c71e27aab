"""OpenAI's HTTP API, answered by a gateway: no sockets here. See README.md in this folder."""
