//! Pages of lists that show some of the rows that they look at.

use uuid::Uuid;

/// Rows looked at for one page, whatever of them is shown.
pub const MOST_SCANNED: i64 = 10_000;

/// A page of a list. It may be short, or even empty, and not be the last one.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// What is shown.
    pub rows: Vec<T>,
    /// Where the next page begins, if there may be one.
    pub next_after: Option<Uuid>,
}

impl<T> Page<T> {
    /// The page of one row more than was wanted.
    ///
    /// # Errors
    /// The rows, when there are not so many: then what was looked at last tells whether there may be
    /// more.
    pub fn full(mut rows: Vec<T>, limit: i64, id: impl Fn(&T) -> Uuid) -> Result<Self, Vec<T>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if rows.len() <= limit {
            return Err(rows);
        }
        rows.truncate(limit);
        let next_after = rows.last().map(id);
        Ok(Self { rows, next_after })
    }
}
