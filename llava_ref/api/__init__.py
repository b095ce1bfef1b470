"""HTTP server with OpenAI's and Nitro's APIs over one model. docs/server.md describes its structure."""
