//! JSON as it was sent: a tree that keeps numbers as written and the place of each part.
//!
//! RFC 8259 to the letter, with three limits of our own: no member twice in an object, at most
//! [`MAX_DEPTH`] levels, no integer of more than 4,300 digits (the pull parser's bound).

use std::borrow::Cow;
use std::collections::HashSet;

use jiter::{Jiter, JiterError, Peek};

use super::faults::shown;

mod outline;

pub use outline::{Part, outline};

/// Levels of objects and arrays; bounds the recursion here and in everything that walks a tree.
pub const MAX_DEPTH: usize = 32;

/// Up to this many members all pairs are compared; above, a set is cheaper.
const FEW_MEMBERS: usize = 16;

/// A value and the text that it was read from.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// Exactly what was sent, without the whitespace around.
    pub raw: &'a str,
    /// What it says.
    pub value: Value<'a>,
}

/// The six kinds of RFC 8259; text without escapes is borrowed.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// As written, never through a binary float.
    Number(&'a str),
    /// Unescaped.
    String(Cow<'a, str>),
    /// In the order sent.
    Array(Vec<Node<'a>>),
    /// In the order sent, each name once.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// A member, if this is an object that has it.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Node<'a>> {
        let Value::Object(members) = &self.value else {
            return None;
        };
        members
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, node)| node)
    }

    /// The text, if this is one of at most so many characters.
    #[must_use]
    pub fn short_text(&self, max_chars: usize) -> Option<&str> {
        let Value::String(text) = &self.value else {
            return None;
        };
        (text.chars().nth(max_chars).is_none()).then_some(text)
    }
}

/// Why a body is no JSON that we take. Always a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8.
    #[error("The body is not UTF-8.")]
    NotUtf8,
    /// Breaks the grammar of RFC 8259.
    #[error("The body is not valid JSON: {what} at line {line}, column {column}.")]
    Syntax {
        /// What is wrong.
        what: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// More than 32 levels of objects and arrays.
    #[error("The JSON is nested more than 32 levels deep.")]
    TooDeep,
    /// The same member twice in one object.
    #[error("The member `{path}` stands twice in its object.")]
    DuplicateMember {
        /// Dotted path of the member.
        path: String,
    },
}

impl JsonError {
    /// The stable code of the problem.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotUtf8 | Self::Syntax { .. } => "json_invalid",
            Self::TooDeep => "json_too_deep",
            Self::DuplicateMember { .. } => "json_duplicate_member",
        }
    }
}

/// Reads one document, in one pass and linear time.
///
/// # Errors
/// The first reason why it is none, see [`JsonError`].
pub fn parse(bytes: &[u8]) -> Result<Node<'_>, JsonError> {
    let text = check_text(bytes)?;
    Reader {
        text,
        tokens: Jiter::new(bytes),
    }
    .document()
}

/// UTF-8 without a byte order mark.
fn check_text(bytes: &[u8]) -> Result<&str, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotUtf8)?;
    if text.starts_with('\u{feff}') {
        let what = "a byte order mark is not allowed".to_owned();
        return Err(syntax_at(text, 0, what));
    }
    Ok(text)
}

struct Reader<'a> {
    text: &'a str,
    tokens: Jiter<'a>,
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Node<'a>, JsonError> {
        let text = self.text;
        let first = self.tokens.peek().map_err(|error| syntax(text, &error))?;
        let root = self.node(first, 0)?;
        self.tokens.finish().map_err(|error| syntax(text, &error))?;
        Ok(root)
    }

    /// The value that begins with `first`, inside `depth` objects and arrays.
    fn node(&mut self, first: Peek, depth: usize) -> Result<Node<'a>, JsonError> {
        let start = self.tokens.current_index();
        let value = match first {
            Peek::Object | Peek::Array if depth == MAX_DEPTH => return Err(JsonError::TooDeep),
            Peek::Object => self.object(depth + 1)?,
            Peek::Array => self.array(depth + 1)?,
            _ => self
                .scalar(first, start)
                .map_err(|error| syntax(self.text, &error))?,
        };
        Ok(Node {
            raw: self.since(start),
            value,
        })
    }

    fn scalar(&mut self, first: Peek, start: usize) -> Result<Value<'a>, JiterError> {
        match first {
            Peek::Null => self.tokens.known_null().map(|()| Value::Null),
            Peek::True | Peek::False => self.tokens.known_bool(first).map(Value::Bool),
            Peek::String => {
                let text = self.text;
                let unescaped = self.tokens.known_str()?;
                Ok(Value::String(borrow_if_plain(&text[start..], unescaped)))
            }
            _ => {
                self.tokens.known_number_bytes(first)?;
                Ok(Value::Number(self.since(start)))
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value<'a>, JsonError> {
        let text = self.text;
        let mut items = Vec::new();
        let mut next = self.tokens.known_array();
        while let Some(first) = next.map_err(|error| syntax(text, &error))? {
            let item = self.node(first, depth);
            items.push(item.map_err(|error| below(&items.len().to_string(), error))?);
            next = self.tokens.array_step();
        }
        Ok(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Result<Value<'a>, JsonError> {
        let text = self.text;
        let mut members: Vec<(Cow<'a, str>, Node<'a>)> = Vec::new();
        loop {
            // The name comes after `{` or `,` and whitespace: its quote is the first one.
            let before = self.tokens.current_index();
            let name = if members.is_empty() {
                self.tokens.known_object()
            } else {
                self.tokens.next_key()
            };
            let Some(name) = name.map_err(|error| syntax(text, &error))? else {
                break;
            };
            let quoted = text[before..].trim_start_matches(|c| c != '"');
            let name = borrow_if_plain(quoted, name);
            let first = self.tokens.peek().map_err(|error| syntax(text, &error))?;
            let member = self
                .node(first, depth)
                .map_err(|error| below(&name, error))?;
            members.push((name, member));
        }
        match repeated_name(members.iter().map(|(name, _)| name.as_ref())) {
            Some(name) => Err(JsonError::DuplicateMember {
                path: shown(name).into_owned(),
            }),
            None => Ok(Value::Object(members)),
        }
    }

    /// What was read since `start`; tokens begin and end at ASCII, so this never cuts a character.
    fn since(&self, start: usize) -> &'a str {
        &self.text[start..self.tokens.current_index()]
    }
}

/// The text itself when it stands unescaped in the source (an escape is always longer than what it
/// means), else a copy.
fn borrow_if_plain<'a>(quoted: &'a str, unescaped: &str) -> Cow<'a, str> {
    match quoted.get(1..=unescaped.len()) {
        Some(plain) if plain == unescaped && quoted.as_bytes()[plain.len() + 1] == b'"' => {
            Cow::Borrowed(plain)
        }
        _ => Cow::Owned(unescaped.to_owned()),
    }
}

/// A name that stands twice.
fn repeated_name<'m>(names: impl Iterator<Item = &'m str> + Clone) -> Option<&'m str> {
    if names.clone().nth(FEW_MEMBERS).is_none() {
        let mut rest = names.clone().enumerate();
        return rest
            .find(|(at, name)| names.clone().take(*at).any(|earlier| earlier == *name))
            .map(|(_, name)| name);
    }
    let mut seen = HashSet::new();
    let mut names = names;
    names.find(|name| !seen.insert(*name))
}

/// The same error, seen from one level further out.
fn below(step: &str, error: JsonError) -> JsonError {
    match error {
        JsonError::DuplicateMember { path } => JsonError::DuplicateMember {
            path: format!("{}.{path}", shown(step)),
        },
        other => other,
    }
}

fn syntax(text: &str, error: &JiterError) -> JsonError {
    syntax_at(text, error.index, error.error_type.to_string())
}

fn syntax_at(text: &str, index: usize, what: String) -> JsonError {
    let before = &text.as_bytes()[..index.min(text.len())];
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    JsonError::Syntax {
        what,
        line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        column: before.len() - line_start + 1,
    }
}

#[cfg(test)]
mod tests;
