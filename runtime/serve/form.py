"""An image file out of a body: the body itself, or a file of an HTML form."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from mate_edge.runtime.serve.reply import Refusal

FORM = "multipart/form-data"
RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""The last is what `curl --data-binary` says of any file; no image comes as one."""
MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096


def take_image(body: bytes, content_type: str | None) -> tuple[bytes, dict[str, str]]:
    """Return the encoded image and the other fields of a form.

    Args:
        body: of the request.
        content_type: its header; an image, `application/octet-stream` or nothing means that the
            body is the image.

    Raises:
        Refusal: 400, a form that is malformed or has not one file; 415, another content type.
    """
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").lower()
    if name == FORM:
        return _take_form(body, options.get(b"boundary"))
    if name not in RAW and not name.startswith("image/"):
        raise Refusal(
            415,
            f"the content type {name[:60]!r} is no image: send image/..., application/octet-stream "
            f"or {FORM}",
        )
    return body, {}


def _take_form(body: bytes, boundary: bytes | None) -> tuple[bytes, dict[str, str]]:
    if not boundary:
        raise Refusal(400, "the form has no boundary")
    images: list[bytes] = []
    fields: dict[str, str] = {}
    ended: list[bool] = []

    def on_file(file: object) -> None:
        stream = file.file_object  # type: ignore[attr-defined]
        stream.seek(0)
        images.append(stream.read())

    def on_field(field: object) -> None:
        name: bytes = field.field_name or b""  # type: ignore[attr-defined]
        value: bytes = field.value or b""  # type: ignore[attr-defined]
        fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")

    settings = {
        "MAX_MEMORY_FILE_SIZE": len(body) + 1,  # nothing is ever put on the disk
        "MAX_FIELDS": MAX_FIELDS,
        "MAX_FIELD_SIZE": MAX_FIELD_BYTES,
    }
    try:
        parser = FormParser(
            FORM, on_field, on_file, on_end=lambda: ended.append(True), boundary=boundary,
            config=settings,
        )  # fmt: skip
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"the form is malformed: {error}") from None
    if len(images) != 1 or not ended:
        raise Refusal(
            400,
            f"the form must have one file, whole, and at most {MAX_FIELDS} fields of "
            f"{MAX_FIELD_BYTES} bytes; {len(images)} files came",
        )
    return images[0], fields
