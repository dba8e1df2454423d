"""The OpenAI wire format: request in, `ChatRequest` out; events in, chunks or one response out."""
