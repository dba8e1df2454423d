"""OpenAI's responses: items in, `ChatRequest` out; events in, typed events or one response out; kept in SQLite."""
