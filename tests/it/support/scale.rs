//! How much a test does, and how it waits.

use std::future::Future;
use std::time::{Duration, Instant};

/// A wait that ends a hopeless test; nothing that works comes near it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a test does its thing: `KEYFOLD_TEST_ROUNDS`, else this many.
pub fn rounds(default: usize) -> usize {
    number("KEYFOLD_TEST_ROUNDS").unwrap_or(default)
}

/// A number from the environment.
pub fn number(name: &str) -> Option<usize> {
    let text = std::env::var_os(name)?.into_string().ok()?;
    Some(text.trim().parse().expect("a number"))
}

/// Asks again and again until the answer is there.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < DEADLINE, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
