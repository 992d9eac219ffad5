"""What Schemathesis has to be told of this API: x-ndjson bodies, and why valid data may be refused."""

import schemathesis
from schemathesis import GenerationMode

# Reasons that no schema can state.
UNWRITABLE = (
    "must be a possible phone number",
    "must be in international form (+…): the store has no default country",
    "must be an absolute http or https URL",
    # `multipleOf` means something else in every validator that counts in binary
    "must have at most 4 decimals",
    # braces come in pairs around a name
    "has a broken variable: a name of letters, digits and _ stands between {{ and }}, like {{first_name}}",
    # which variables a template has is a matter of state
    "is required by the template",
    "is not a variable of the template",
    # so is which templates a store has
    "is not a template of the store that can be sent",
    # which addresses are inside the operator's network, which headers are ours
    "leads to an address inside the operator's network (KEYFOLD_ALLOW_PRIVATE_TARGETS allows exceptions)",
    "must not contain a user name or a password: headers are the place for secrets",
    "must be whsec_ and the base64 of 24 to 64 bytes",
    "must have its placeholders in the path or the query",
    "must not have a fragment",
    "is given twice: case does not count",
    "is a header that can't be set",
)
# Members whose names and values depend on the schema of another resource.
OF_A_RECORD = ("trigger.when", "action.send_template.variables")
# The same inside free JSON, whose values may be anything else.
UNWRITABLE_IN_FREE_JSON = (
    "must have at most 40 significant digits and an exponent within ±40",
    "must not contain U+0000",
)


def is_positive(case):
    generation = case.meta.generation if case.meta else None
    return generation is not None and generation.mode is GenerationMode.POSITIVE


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.deserializer("application/x-ndjson")
def text(ctx, response):
    return response.content.decode()


@schemathesis.hook
def filter_case(ctx, case):
    """A stream of lines is text: what stands for another type in it is the same text again."""
    return case.media_type != "application/x-ndjson" or isinstance(case.body, (str, bytes))


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Ties the parameters of bulk to the media type of the body, which a schema can't do."""
    if not case.path.endswith("/bulk") or not is_positive(case) or not case.query:
        return
    is_stream = case.media_type == "application/x-ndjson"
    for name in ("atomic", "dry_run") if is_stream else ("results",):
        case.query.pop(name, None)


@schemathesis.check
def refusal_is_beyond_a_schema(ctx, response, case):
    """Data that fits the schema is refused only for reasons that a schema can't state."""
    if response.status_code != 422 or not is_positive(case) or case.path.endswith("/bulk"):
        return
    for path, reasons in response.json().get("errors", {}).items():
        if path.startswith(OF_A_RECORD):
            continue
        is_free = path.startswith(("metadata", "line_items", "buttons"))
        known = UNWRITABLE + UNWRITABLE_IN_FREE_JSON * is_free
        for reason in reasons:
            assert reason in known, f"{path}: {reason}"
