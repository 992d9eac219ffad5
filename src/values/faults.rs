//! What is wrong with a piece of input: dotted paths and sentences, all of them at once.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Faults listed for one document: a hostile one could have as many as it has bytes.
pub const MAX_FAULTS: usize = 100;

/// Characters of a caller's member name that a path shows.
const MAX_NAME_CHARS: usize = 100;

/// Says, at the whole document, that the list was cut.
const MORE: &str = "has more faults than the 100 that are listed";

/// Faulty fields: a dotted path (`customer.phone`, `line_items.3`, `""` for the whole) and what is
/// wrong there. At most [`MAX_FAULTS`], then one sentence more that says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    by_path: BTreeMap<String, Vec<String>>,
    listed: usize,
    cut: bool,
}

/// A value, or what is wrong with it; paths are relative to the value.
pub type Checked<T> = Result<T, Faults>;

impl Faults {
    /// One fault of the value itself.
    #[must_use]
    pub fn one(message: impl Into<String>) -> Self {
        Self::at("", message)
    }

    /// One fault at a path inside the value.
    #[must_use]
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        let mut faults = Self::default();
        faults.add(path, message);
        faults
    }

    /// Adds a fault; past the limit only the fact that there are more.
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        if self.listed < MAX_FAULTS {
            self.listed += 1;
            self.by_path
                .entry(path.into())
                .or_default()
                .push(message.into());
        } else if !self.cut {
            self.cut = true;
            self.by_path
                .entry(String::new())
                .or_default()
                .push(MORE.to_owned());
        }
    }

    /// Adds the faults of the part that stands at `prefix`.
    pub fn nest(&mut self, prefix: &str, mut inner: Self) {
        if inner.cut {
            inner.forget_cut();
        }
        for (path, messages) in inner.by_path {
            let path = join(prefix, path);
            for message in messages {
                self.add(path.as_str(), message);
            }
        }
        if inner.cut {
            // The part was full, so the whole is: this says no more than that.
            self.add("", MORE);
        }
    }

    /// Takes the sentence about the cut out again: it belongs to the outermost document.
    fn forget_cut(&mut self) {
        if let Some(messages) = self.by_path.get_mut("") {
            messages.retain(|message| message != MORE);
            if messages.is_empty() {
                self.by_path.remove("");
            }
        }
    }

    /// Whether further faults would not be listed: a reader may stop looking.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_path.is_empty()
    }

    /// Path → sentences, as the `errors` member answers them.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, Vec<String>> {
        &self.by_path
    }

    /// `Ok` when nothing is wrong.
    ///
    /// # Errors
    /// The faults, if there are any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// The path of what stands at `inner` in the part at `prefix`.
fn join(prefix: &str, inner: String) -> String {
    match (prefix.is_empty(), inner.is_empty()) {
        (true, _) => inner,
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}.{inner}"),
    }
}

/// A caller's member name as one step of a path: as it is, but not endless.
pub(super) fn shown(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(MAX_NAME_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &name[..end])),
        None => Cow::Borrowed(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn many(count: usize) -> Faults {
        let mut faults = Faults::default();
        (0..count).for_each(|i| faults.add(i.to_string(), "is wrong"));
        faults
    }

    #[test]
    fn nested_paths_are_joined_by_dots() {
        let mut faults = Faults::default();
        faults.nest("customer", Faults::at("phone", "is required"));
        faults.nest("tags", Faults::one("must be an array"));
        faults.nest("", Faults::at("x", "is not a known field"));
        let paths: Vec<_> = faults.as_map().keys().map(String::as_str).collect();
        assert_eq!(paths, ["customer.phone", "tags", "x"]);
    }

    #[test]
    fn a_hundred_faults_are_listed_and_one_more_says_that_there_are_more() {
        assert!(!many(MAX_FAULTS).is_cut());
        assert!(!many(MAX_FAULTS).as_map().contains_key(""));
        let cut = many(MAX_FAULTS + 5);
        assert!(cut.is_cut());
        assert_eq!(cut.as_map().len(), MAX_FAULTS + 1);
        assert_eq!(cut.as_map()[""], [MORE]);
    }

    #[test]
    fn the_sentence_about_the_cut_stands_at_the_outermost_document() {
        let mut outer = Faults::default();
        outer.nest("items.0", many(MAX_FAULTS + 1));
        outer.nest("items.1", many(3));
        assert_eq!(outer.as_map()[""], [MORE]);
        assert!(!outer.as_map().contains_key("items.0"));
        assert_eq!(outer.as_map().len(), MAX_FAULTS + 1);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(shown(&"é".repeat(100)), "é".repeat(100));
        assert_eq!(shown(&"é".repeat(101)), format!("{}…", "é".repeat(100)));
        assert_eq!(shown("a\0b"), "a\0b");
    }
}
