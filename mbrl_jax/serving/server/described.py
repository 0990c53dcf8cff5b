"""What the OpenAPI page says of each address."""

from typing import Any

from mbrl_jax.serving.server.reading import ARROW, JSON

TITLE = "mbrl_jax: a served policy and its world model"
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_ROWS = {"type": "array", "items": _NUMBERS}
_FLAGS = {"type": "array", "items": {"type": "boolean"}}
_WRONG = {
    status: {"description": text}
    for status, text in (
        ("400", "the body is no JSON or no Arrow stream"),
        ("401", "the key is missing or another"),
        ("413", "the body is too large"),
        ("415", "the media type is none of the two"),
        ("422", "a field does not fit: field and detail say which, and what would be right"),
    )
}


def _operation(summary: str, description: str = "", body: dict[str, Any] | None = None, arrow: bool = False) -> dict[str, Any]:
    """The keyword arguments of a route."""
    more: dict[str, Any] = {}
    if body is not None:
        content: dict[str, Any] = {JSON: {"schema": {"type": "object", "properties": body}}}
        if arrow:
            content[ARROW] = {"schema": {"type": "string", "format": "binary"}}
        more = {"requestBody": {"required": True, "content": content}, "responses": _WRONG}
    return {"summary": summary, "description": description or summary, "openapi_extra": more}


OPERATIONS: dict[str, dict[str, Any]] = {
    "/act": _operation(
        "Actions for one observation or a batch",
        "Observations and actions are in the task's own units. With explain, also what the actions were chosen by.",
        {"observation": {"oneOf": [_NUMBERS, _ROWS]}, "explain": {"type": "boolean", "default": False}},
        arrow=True,
    ),
    "/imagine": _operation(
        "Imagined rollouts of the served policy in the served model",
        "The answer is a stream of lines of JSON: a head, then one line for each step of all rollouts. A rollout ends where the "
        "model ends it, at the horizon, or where the rule says: threshold before a step about which the members disagree by "
        "more than the mark, accumulated before the sum of their disagreement exceeds it.",
        {
            "observation": {"oneOf": [_NUMBERS, _ROWS]},
            "horizon": {"type": "integer", "minimum": 1, "default": 10},
            "rule": {
                "type": "object",
                "properties": {"kind": {"enum": ["fixed", "threshold", "accumulated"]}, "mark": {"type": "number", "minimum": 0}},
            },
            "members": {"oneOf": [{"enum": ["mean", "all"]}, {"type": "array", "items": {"type": "integer"}}]},
        },
    ),
    "/transitions": _operation(
        "Keep real transitions",
        "Rows of one episode in their order; the next request of the episode goes on where they end. When the answer comes, they "
        "are on the disk.",
        {
            "episode": {"type": "string", "maxLength": 200},
            "observation": _ROWS,
            "action": {"type": "array"},
            "reward": _NUMBERS,
            "next_observation": _ROWS,
            "terminated": _FLAGS,
            "truncated": _FLAGS,
        },
        arrow=True,
    ),
    "/transitions/seal": _operation("Move ended episodes to a Parquet file that training reads", body={}),
    "/reload": _operation(
        "Serve the export that is in the folder now",
        "It is held against its contract before it takes the old one's place; one that cannot be served is refused with 409.",
        {},
    ),
    "/health": _operation("Whether the process answers"),
    "/ready": _operation("Whether requests can be sent, and which export is served"),
    "/metrics": _operation("Counters in Prometheus' text format"),
    "/contract": _operation("The contract of the export that is served"),
}
