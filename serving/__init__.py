"""An OpenAI-compatible server on transformers' own, and the plugin for vLLM."""
