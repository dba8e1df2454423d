"""Chats without a model: messages, events, prompts, answers, and the grammar of tool calls.

A request's way through this room: `ids.canonicalize` and `template.ChatTemplate.render` make the prompt,
`constraints.ToolConstraint` says which tokens may follow, `lexers` and `parser.ReplyParser` turn what followed into
`events`. Import from the modules: this package itself loads nothing.
"""
