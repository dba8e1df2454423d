"""The HTTP front: the OpenAI and Anthropic APIs and a web page over any `ChatProvider`.

`openk2.server.app.create_app` builds the ASGI application, `openk2.server.run.run_server` runs it.
"""
