"""The models of the plugin, by the module that holds each."""

AVAILABLE_MODELS = {"openai_scored": "OpenAIScored"}
