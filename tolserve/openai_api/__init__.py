"""The OpenAI completions protocol as plain functions and models: requests checked, prompts as ids, bodies written.

Nothing here knows HTTP, Ray or the engine's loop; `tolserve.app` joins them.
"""
