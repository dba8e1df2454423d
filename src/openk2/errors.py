"""Every error that a user of openk2 can meet, in one tree.

    OpenK2Error
    +-- ConfigError              a model or recipe setting that is wrong or cannot be honoured
    +-- CheckpointError          a file of a model is missing, truncated or reshaped
    +-- TokenizerError           a vocabulary file is malformed
    +-- TemplateError            a chat template cannot be rendered
    +-- DataError                training or evaluation data is malformed
    +-- TrainingError            a training run cannot go on: its state or log cannot be written
    |   +-- DivergedError        its loss or a gradient is no finite number
    +-- RequestError             a request that can never be served as it is
    |   +-- ContextLengthError   the prompt does not fit the window
    |   +-- ModelNotFoundError   no such model is served here
    |   +-- SchemaError          a tool's or a response's JSON schema cannot be used
    +-- ProviderError            the engine or the remote endpoint failed
    |   +-- OverloadedError      it has no room now; try again
    |   |   +-- QueueFullError   as many requests wait as may
    |   +-- TimeLimitError       the answer took longer than a request may
    |   +-- EngineDeadError      the engine process ended
    +-- EnvironmentFault         this machine lacks something (port in use, package missing)

`ValueError` and `assert` stay for mistakes of a programmer. Each class carries the HTTP status and the process
exit code with which its front ends report it.
"""

from __future__ import annotations


class OpenK2Error(Exception):
    """Base of all errors below; `str(error)` is one clear line for a person."""

    http_status = 500
    exit_code = 1
    error_type = "internal_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The request field, file or setting at fault, when there is one."""


class ConfigError(OpenK2Error):
    exit_code = 2


class CheckpointError(OpenK2Error):
    exit_code = 2


class TokenizerError(OpenK2Error):
    exit_code = 2


class TemplateError(OpenK2Error):
    http_status = 400
    error_type = "invalid_request_error"


class DataError(OpenK2Error):
    exit_code = 2


class TrainingError(OpenK2Error):
    exit_code = 1


class DivergedError(TrainingError):
    pass


class RequestError(OpenK2Error):
    http_status = 400
    error_type = "invalid_request_error"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"

    def __init__(self, *, prompt_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has {prompt_tokens}.",
            param="messages",
        )
        self.prompt_tokens = prompt_tokens
        self.max_model_len = max_model_len


class ModelNotFoundError(RequestError):
    http_status = 404
    code = "model_not_found"


class SchemaError(RequestError):
    code = "invalid_schema"


class ProviderError(OpenK2Error):
    http_status = 502
    error_type = "api_error"


class OverloadedError(ProviderError):
    http_status = 503
    error_type = "overloaded_error"
    retry_after_s: float | None = None
    """Seconds after which to try again, where the provider says."""


class QueueFullError(OverloadedError):
    http_status = 429
    code = "queue_full"


class TimeLimitError(ProviderError):
    http_status = 504
    error_type = "timeout_error"


class EngineDeadError(ProviderError):
    http_status = 500


class EnvironmentFault(OpenK2Error):
    exit_code = 1
