//! Reads the members of one object and collects everything that is wrong with them.
//!
//! A reader asks for each field it knows, one after the other; [`Fields::finish`] then names the
//! members nobody asked for. An `Option` that is `None` where a field is required always comes with
//! a fault, so that after `finish()?` the required values are there.

use super::faults::{Checked, Faults, shown};
use super::json::{Node, Value};

/// The members of an object that is being read.
#[derive(Debug)]
pub struct Fields<'n, 'a> {
    members: &'n [(std::borrow::Cow<'a, str>, Node<'a>)],
    known: Vec<bool>,
    faults: Faults,
}

/// What a merge patch (RFC 7396) says of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch<T> {
    /// Not there: the stored value stays.
    Absent,
    /// `null`: the stored value goes.
    Null,
    /// Replaces the stored value.
    Value(T),
}

impl<T> Patch<T> {
    /// The value, if one was sent.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The same of another kind.
    pub fn map<U>(&self, convert: impl FnOnce(&T) -> U) -> Patch<U> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(value) => Patch::Value(convert(value)),
        }
    }
}

impl<T: Clone> Patch<T> {
    /// Changes a value that can be missing.
    pub fn apply(&self, stored: &mut Option<T>) {
        match self {
            Self::Absent => {}
            Self::Null => *stored = None,
            Self::Value(value) => *stored = Some(value.clone()),
        }
    }

    /// Changes a value for which null means a default.
    pub fn apply_or(&self, stored: &mut T, default: impl FnOnce() -> T) {
        match self {
            Self::Absent => {}
            Self::Null => *stored = default(),
            Self::Value(value) => stored.clone_from(value),
        }
    }
}

impl<'n, 'a> Fields<'n, 'a> {
    /// Begins to read an object.
    ///
    /// # Errors
    /// The node is something else; an array is never taken for an object.
    pub fn of(node: &'n Node<'a>) -> Checked<Self> {
        let Value::Object(members) = &node.value else {
            return Err(Faults::one("must be an object"));
        };
        let known = vec![false; members.len()];
        Ok(Self {
            members,
            known,
            faults: Faults::default(),
        })
    }

    /// A field that must be there; absent or null is a fault.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&Node<'a>) -> Checked<T>,
    ) -> Option<T> {
        match self.patch(name, parse) {
            Patch::Value(value) => Some(value),
            Patch::Null => self.missing(name),
            Patch::Absent if !self.present(name) => self.missing(name),
            Patch::Absent => None,
        }
    }

    /// A field that may be left out; null is the same as left out.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&Node<'a>) -> Checked<T>,
    ) -> Option<T> {
        match self.patch(name, parse) {
            Patch::Value(value) => Some(value),
            Patch::Absent | Patch::Null => None,
        }
    }

    /// A field of a merge patch. A value that is refused is recorded and counts as absent.
    pub fn patch<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&Node<'a>) -> Checked<T>,
    ) -> Patch<T> {
        let Some(node) = self.take(name) else {
            return Patch::Absent;
        };
        if matches!(node.value, Value::Null) {
            return Patch::Null;
        }
        match parse(node) {
            Ok(value) => Patch::Value(value),
            Err(faults) => {
                self.faults.nest(name, faults);
                Patch::Absent
            }
        }
    }

    /// Whether the member was sent, even as null.
    #[must_use]
    pub fn present(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Refuses a member that was sent, even as null, with a sentence of its own instead of "is not
    /// a known field". Says whether it was there.
    pub fn refuse(&mut self, name: &str, message: impl Into<String>) -> bool {
        let present = self.take(name).is_some();
        if present {
            self.faults.add(name, message);
        }
        present
    }

    /// Adds a fault that concerns several fields, or none.
    pub fn add_fault(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.faults.add(path, message);
    }

    /// Ends the reading: `Ok` only if nothing at all was wrong.
    ///
    /// # Errors
    /// All faults, among them a member that nobody asked for.
    pub fn finish(mut self) -> Checked<()> {
        let unknown = self
            .members
            .iter()
            .zip(&self.known)
            .filter(|(_, known)| !**known);
        for ((name, _), _) in unknown {
            if self.faults.is_cut() {
                break;
            }
            self.faults.add(shown(name), "is not a known field");
        }
        self.faults.into_result()
    }

    fn missing<T>(&mut self, name: &str) -> Option<T> {
        self.faults.add(name, "is required");
        None
    }

    fn take(&mut self, name: &str) -> Option<&'n Node<'a>> {
        let index = self.index(name)?;
        self.known[index] = true;
        Some(&self.members[index].1)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|(member, _)| member == name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{json::parse, text::text};
    use super::*;

    fn with<T>(json: &str, read: impl FnOnce(&mut Fields) -> T) -> (T, Vec<(String, String)>) {
        let node = parse(json.as_bytes()).unwrap();
        let mut fields = Fields::of(&node).unwrap();
        let value = read(&mut fields);
        let faults = fields.finish().err().unwrap_or_default();
        let listed = faults.as_map().iter();
        (
            value,
            listed
                .map(|(path, said)| (path.clone(), said.join("; ")))
                .collect(),
        )
    }

    fn pair(path: &str, message: &str) -> (String, String) {
        (path.to_owned(), message.to_owned())
    }

    #[test]
    fn only_an_object_has_fields() {
        for json in ["[]", "null", "\"x\"", "1", "true", "[{}]"] {
            let node = parse(json.as_bytes()).unwrap();
            assert_eq!(
                Fields::of(&node).unwrap_err(),
                Faults::one("must be an object")
            );
        }
    }

    #[test]
    fn a_required_field_must_be_there_and_not_null() {
        for json in ["{}", r#"{"a":null}"#] {
            let read = with(json, |f| f.required("a", text(5)));
            assert_eq!(read, (None, vec![pair("a", "is required")]), "{json}");
        }
        let read = with(r#"{"a":"x"}"#, |f| f.required("a", text(5)));
        assert_eq!(read, (Some("x".to_owned()), vec![]));
        let read = with(r#"{"a":1}"#, |f| f.required("a", text(5)));
        assert_eq!(read, (None, vec![pair("a", "must be a string")]));
    }

    #[test]
    fn an_optional_field_may_be_absent_or_null() {
        for json in ["{}", r#"{"a":null}"#] {
            assert_eq!(
                with(json, |f| f.optional("a", text(5))),
                (None, vec![]),
                "{json}"
            );
        }
    }

    #[test]
    fn a_patch_tells_absent_from_null() {
        let cases = [
            ("{}", Patch::Absent, vec![]),
            (r#"{"a":null}"#, Patch::Null, vec![]),
            (r#"{"a":"x"}"#, Patch::Value("x".to_owned()), vec![]),
            (
                r#"{"a":[]}"#,
                Patch::Absent,
                vec![pair("a", "must be a string")],
            ),
        ];
        for (json, patch, faults) in cases {
            assert_eq!(
                with(json, |f| f.patch("a", text(5))),
                (patch, faults),
                "{json}"
            );
        }
    }

    #[test]
    fn all_faults_are_told_at_once_with_their_paths() {
        let json = r#"{"inner":{"b":1,"x\u0000":2},"later":3,"gone":null}"#;
        let (_, faults) = with(json, |f| {
            assert!(f.refuse("gone", "can't be changed"));
            assert!(!f.refuse("absent", "can't be changed"));
            f.add_fault("", "is odd");
            f.required("inner", |node| {
                let mut inner = Fields::of(node)?;
                inner.required("b", text(5));
                inner.finish()
            })
        });
        let expected = [
            pair("", "is odd"),
            pair("gone", "can't be changed"),
            pair("inner.b", "must be a string"),
            pair("inner.x\0", "is not a known field"),
            pair("later", "is not a known field"),
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn unknown_members_are_bounded_in_number_and_length() {
        let members: Vec<_> = (0..5000)
            .map(|i| format!("\"{i}{}\":0", "n".repeat(200)))
            .collect();
        let (_, faults) = with(&format!("{{{}}}", members.join(",")), |_| ());
        assert_eq!(faults.len(), 101);
        assert!(faults.iter().all(|(path, _)| path.chars().count() <= 101));
    }
}
