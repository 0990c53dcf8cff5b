"""What a client has done wrong, as it is told."""


class Refused(Exception):  # noqa: N818, it is an answer
    """A request that cannot be answered: the status, the field, and what would be right."""

    def __init__(self, status: int, field: str, detail: str):
        super().__init__(f"{field}: {detail}")
        self.status, self.field, self.detail = status, field, detail


def shown(value: object, most: int = 60) -> str:
    """A client's value, no longer than a message should be."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
