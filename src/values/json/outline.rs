//! The outline of a document: the members of its object, arrays among them as unread items.
//!
//! A tree takes many times the memory of its text, so a document of many records is cut into their
//! texts first and each is read by itself.

use std::borrow::Cow;

use jiter::{Jiter, JiterError, JsonErrorType, Peek};

use super::{JsonError, borrow_if_plain, check_text, repeated_name, shown, syntax};

/// A member of an outlined object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// An array: the text of each item.
    Items(Vec<&'a str>),
    /// Anything else.
    Other,
}

/// The members of an outlined object, in their order.
pub type Members<'a> = Vec<(Cow<'a, str>, Part<'a>)>;

/// Outlines a document: the members of its object, or `None` when it is something else. The whole
/// text is checked against the grammar; repeated members and depth only at the top.
///
/// Of members, and of the items of an array, `most` and one more are listed, so that the caller sees
/// that there are too many; 16 MiB of `0,0,0` would take 128 MiB otherwise.
///
/// # Errors
/// The first reason why it is no JSON that we take.
pub fn outline(bytes: &[u8], most: usize) -> Result<Option<Members<'_>>, JsonError> {
    let text = check_text(bytes)?;
    let mut tokens = Jiter::new(bytes);
    let fault = |error: JiterError| match error.error_type {
        jiter::JiterErrorType::JsonError(JsonErrorType::RecursionLimitExceeded) => {
            JsonError::TooDeep
        }
        _ => syntax(text, &error),
    };
    let first = tokens.peek().map_err(fault)?;
    let members = if first == Peek::Object {
        Some(members(text, &mut tokens, most).map_err(fault)?)
    } else {
        tokens.known_skip(first).map_err(fault)?;
        None
    };
    tokens.finish().map_err(fault)?;
    let names = members.iter().flatten().map(|(name, _)| name.as_ref());
    match repeated_name(names) {
        Some(name) => Err(JsonError::DuplicateMember {
            path: shown(name).into_owned(),
        }),
        None => Ok(members),
    }
}

fn members<'a>(
    text: &'a str,
    tokens: &mut Jiter<'a>,
    most: usize,
) -> Result<Members<'a>, JiterError> {
    let mut members = Vec::new();
    let mut is_first = true;
    loop {
        // The name comes after `{` or `,` and whitespace: its quote is the first one.
        let before = tokens.current_index();
        let name = if std::mem::take(&mut is_first) {
            tokens.known_object()?
        } else {
            tokens.next_key()?
        };
        let Some(name) = name else { return Ok(members) };
        let quoted = text[before..].trim_start_matches(|c| c != '"');
        let name = borrow_if_plain(quoted, name);
        let first = tokens.peek()?;
        let part = if first == Peek::Array {
            Part::Items(items(text, tokens, most)?)
        } else {
            tokens.known_skip(first)?;
            Part::Other
        };
        if members.len() <= most {
            members.push((name, part));
        }
    }
}

fn items<'a>(
    text: &'a str,
    tokens: &mut Jiter<'a>,
    most: usize,
) -> Result<Vec<&'a str>, JiterError> {
    let mut items = Vec::new();
    let mut next = tokens.known_array()?;
    while let Some(first) = next {
        let start = tokens.current_index();
        tokens.known_skip(first)?;
        if items.len() <= most {
            items.push(&text[start..tokens.current_index()]);
        }
        next = tokens.array_step()?;
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_cut_into_the_texts_of_their_items() {
        let members = outline(
            br#" {"a" : [ {"x":[1]} , 2,"\u0041"] ,"b":{"c":[1]},"d":[]} "#,
            9,
        )
        .expect("valid")
        .expect("an object");
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(names, ["a", "b", "d"]);
        assert_eq!(
            members[0].1,
            Part::Items(vec![r#"{"x":[1]}"#, "2", r#""\u0041""#])
        );
        assert_eq!(members[1].1, Part::Other);
        assert_eq!(members[2].1, Part::Items(Vec::new()));
    }

    #[test]
    fn one_more_than_the_most_is_listed_and_the_rest_is_only_checked() {
        let members = outline(br#"{"a":[1,2,3,4],"b":0,"c":0,"d":0}"#, 2).expect("valid");
        let listed = Part::Items(vec!["1", "2", "3"]);
        let members = members.expect("an object");
        assert_eq!((members.len(), &members[0].1), (3, &listed));
        assert!(outline(br#"{"a":[1,2,3,4,tru]}"#, 2).is_err());
        assert!(outline(br#"{"a":0,"b":0,"c":0,"d":0,}"#, 2).is_err());
    }

    #[test]
    fn what_is_no_object_has_no_members_and_what_is_no_json_is_an_error() {
        for other in ["[]", "1", "null", "\"x\""] {
            assert_eq!(outline(other.as_bytes(), 9), Ok(None), "{other}");
        }
        for broken in [
            "",
            "{",
            "{\"a\":[1,]}",
            "{\"a\":[tru]}",
            "{} x",
            "{\"a\":[01]}",
        ] {
            let error = outline(broken.as_bytes(), 9).expect_err(broken);
            assert_eq!(error.code(), "json_invalid", "{broken}");
        }
        let twice = outline(br#"{"items":[],"\u0069tems":[]}"#, 9).expect_err("twice");
        assert_eq!(twice.code(), "json_duplicate_member");
        let deep = format!("{{\"items\":[{}{}]}}", "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(outline(deep.as_bytes(), 9), Err(JsonError::TooDeep));
    }
}
