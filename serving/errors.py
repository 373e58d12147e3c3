"""Errors that are sent to clients, in OpenAI's format."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """
    An error reply. Its message is one sentence for the person who asked.

    Args:
        status: The HTTP status.
        message: What was wrong, and what to do.
        code: A word for programs, such as "model_not_found".
        param: The place of the fault in the body, such as "messages[0].content[1].video_url.url".
        headers: Further headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def response(self) -> JSONResponse:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "code": self.code, "param": self.param}
        return JSONResponse({"error": error}, self.status, self.headers)
