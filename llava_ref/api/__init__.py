"""The HTTP server: OpenAI's interface and Nitro's over one model. docs/server.md says how it is put together."""
