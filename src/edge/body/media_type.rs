//! What a body says it is.

use http::{HeaderMap, header};

use crate::error::Error;

/// The type of a body, out of those that a route takes; `supported` names them for the caller.
///
/// Exactly one `Content-Type` (RFC 9110, 8.3). Case doesn't count; `charset` must be utf-8 where it
/// is given; other parameters are ignored.
///
/// # Errors
/// `UnsupportedMediaType`.
pub fn media_type(
    headers: &HeaderMap,
    accepted: &[&'static str],
    supported: &'static str,
) -> Result<&'static str, Error> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Error::UnsupportedMediaType { supported });
    };
    value
        .to_str()
        .ok()
        .and_then(|text| accepted_type(text, accepted))
        .ok_or(Error::UnsupportedMediaType { supported })
}

fn accepted_type(text: &str, accepted: &[&'static str]) -> Option<&'static str> {
    let (essence, parameters) = text.split_at(text.find(';').unwrap_or(text.len()));
    let essence = essence.trim_matches(OWS);
    let found = accepted
        .iter()
        .find(|name| name.eq_ignore_ascii_case(essence))?;
    parameters_fit(parameters).then_some(*found)
}

const OWS: [char; 2] = [' ', '\t'];

/// Whether a list of `;name=value` is well-formed and names no charset but utf-8.
fn parameters_fit(mut rest: &str) -> bool {
    loop {
        rest = rest.trim_start_matches(OWS);
        if rest.is_empty() {
            return true;
        }
        let Some(after) = rest.strip_prefix(';') else {
            return false;
        };
        rest = after.trim_start_matches(OWS);
        // An empty parameter, as in `a/b;` or `a/b;;c=d`, is allowed.
        if rest.is_empty() || rest.starts_with(';') {
            continue;
        }
        let Some((name, value, after)) = parameter(rest) else {
            return false;
        };
        if name.eq_ignore_ascii_case("charset") && !value.eq_ignore_ascii_case("utf-8") {
            return false;
        }
        rest = after;
    }
}

/// The name, the value and what follows. A backslash in a quoted value is kept: it only has to be
/// stepped over, since no charset needs one.
fn parameter(text: &str) -> Option<(&str, &str, &str)> {
    let (name, after) = token(text)?;
    let after = after.strip_prefix('=')?;
    let Some(quoted) = after.strip_prefix('"') else {
        let (value, after) = token(after)?;
        return Some((name, value, after));
    };
    let mut escaped = false;
    let end = quoted.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })?;
    Some((name, &quoted[..end], &quoted[end + 1..]))
}

/// A token (RFC 9110, 5.6.2) and what follows it.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let end = text
        .bytes()
        .position(|byte| !is_part(byte))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(values: &[&str]) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                header::CONTENT_TYPE,
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        let accepted = ["application/json", "application/x-ndjson"];
        media_type(
            &headers,
            &accepted,
            "application/json or application/x-ndjson",
        )
        .ok()
    }

    #[test]
    fn the_type_counts_and_its_spelling_does_not() {
        for json in [
            "application/json",
            "Application/JSON",
            " application/json ",
            "application/json;charset=utf-8",
            "application/json ; Charset=\"UTF-8\"",
            "application/json; profile=\"a;charset=latin1\\\"\"; charset=utf-8",
            "application/json; v=1",
            "application/json;",
        ] {
            assert_eq!(read(&[json]), Some("application/json"), "{json}");
        }
        assert_eq!(
            read(&["application/x-ndjson"]),
            Some("application/x-ndjson")
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let malformed = [
            "",
            "text/plain",
            "application/jsonx",
            "application/merge-patch+json",
            "application/json, application/json",
            "application/json; charset=utf-16",
            "application/json; charset=utf-8; charset=latin1",
            "application/json; charset=\"utf-8",
            "application/json; charset",
            "application/json; charset = utf-8",
            "application/json; =x",
            "application/json; a=b c=d",
        ];
        for value in malformed {
            assert_eq!(read(&[value]), None, "{value}");
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["application/json", "application/json"]), None);
    }
}
