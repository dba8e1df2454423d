"""The Anthropic wire format: request in, `ChatRequest` out; events in, a stream of events or one message out."""
