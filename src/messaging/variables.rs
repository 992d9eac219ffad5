//! `{{named}}` variables of a template's texts.

use std::collections::BTreeSet;

use crate::values::{Checked, Faults};

/// Characters of a variable's name.
const MOST_NAME_CHARS: usize = 64;
/// Variables of one template.
pub const MOST_VARIABLES: usize = 100;

/// The names in a text, in order of appearance, each once.
///
/// # Errors
/// Braces that don't enclose a name.
pub fn names(text: &str) -> Checked<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or_else(broken)?;
        let name = name.trim();
        let fits = (1..=MOST_NAME_CHARS).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !fits {
            return Err(broken());
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        rest = after;
    }
    Ok(names)
}

fn broken() -> Faults {
    Faults::one(
        "has a broken variable: a name of letters, digits and _ stands between {{ and }}, like \
         {{first_name}}",
    )
}

/// Orders what was sent as a template wants it.
///
/// # Errors
/// Every variable that is missing or that the template does not have, under `variables`.
pub fn fill(
    wanted: &[String],
    sent: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, Faults> {
    let mut faults = Faults::default();
    for name in wanted {
        if !sent.iter().any(|(given, _)| given == name) {
            faults.add(format!("variables.{name}"), "is required by the template");
        }
    }
    let known: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    for (name, _) in &sent {
        if !known.contains(name.as_str()) {
            let shown: String = name.chars().take(100).collect();
            faults.add(
                format!("variables.{shown}"),
                "is not a variable of the template",
            );
        }
    }
    faults.into_result()?;
    let mut filled = sent;
    filled.sort_by_key(|(name, _)| wanted.iter().position(|wanted| wanted == name));
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_once_and_in_order() {
        let found =
            names("Hello {{first_name}}, {{ url }} and {{first_name}} {{1}}").expect("fine");
        assert_eq!(found, ["first_name", "url", "1"]);
        assert_eq!(names("no } braces {").expect("fine"), [""; 0]);
    }

    #[test]
    fn broken_variables_are_refused() {
        for text in [
            "{{", "{{}}", "{{ }}", "{{a b}}", "{{é}}", "{{a}", "{{{a}}}", "{{a.b}}",
        ] {
            assert!(names(text).is_err(), "{text}");
        }
        let long = format!("{{{{{}}}}}", "n".repeat(65));
        assert!(names(&long).is_err());
    }

    #[test]
    fn what_is_missing_and_what_is_unknown_are_named_together() {
        let wanted = ["a".to_owned(), "b".to_owned()];
        let pair = |name: &str| (name.to_owned(), "x".to_owned());
        let faults = fill(&wanted, vec![pair("c"), pair("b")]).expect_err("two faults");
        let paths: Vec<&String> = faults.as_map().keys().collect();
        assert_eq!(paths, ["variables.a", "variables.c"]);
        let filled = fill(&wanted, vec![pair("b"), pair("a")]).expect("all are there");
        assert_eq!(filled, [pair("a"), pair("b")]);
    }
}
