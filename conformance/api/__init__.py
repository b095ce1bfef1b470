"""Checks any OpenAI-format vision server against what OpenAI's reference and its SDKs demand."""
