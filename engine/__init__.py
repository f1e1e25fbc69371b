"""A multi-model LLM serving engine. It knows no wall clock, no event loop and no simulator: all are injected."""
