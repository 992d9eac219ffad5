//! What a failed statement means for the write that it belonged to, judged by SQLSTATE.

use std::borrow::Cow;
use std::fmt;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::error::Error;

/// `lock_not_available`
const LOCKED: &str = "55P03";

/// Why a transaction did not end well.
#[derive(Debug)]
pub enum Failure {
    /// Somebody else was faster; nothing was done and trying again is right.
    Conflict,
    /// The connection was lost before the commit was asked for: nothing was done.
    Disconnected(sqlx::Error),
    /// The connection was lost while committing: it may have been done.
    CommitLost(sqlx::Error),
    /// Postgres can't hold a value of one of the rows; nothing was done.
    Value(sqlx::Error),
    /// A row breaks a rule of the schema, which is a fault of ours; nothing was done.
    Row(sqlx::Error),
    /// Not now: locks or time ran out; nothing was done.
    Busy(sqlx::Error),
    /// A fault of ours; nothing was done.
    Fault(sqlx::Error),
}

impl fmt::Display for Failure {
    /// For logs: without what Postgres shows of the row.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, error) = match self {
            Self::Conflict => return f.write_str("somebody else was faster"),
            Self::Disconnected(error) => ("disconnected", error),
            Self::CommitLost(error) => ("commit not answered", error),
            Self::Value(error) => ("value refused", error),
            Self::Row(error) => ("row refused", error),
            Self::Busy(error) => ("busy", error),
            Self::Fault(error) => ("fault", error),
        };
        write!(f, "{kind}: {error}")
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let code = match &error {
            sqlx::Error::Database(inner) => inner.code().map(Cow::into_owned),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => return Self::Disconnected(error),
            _ => return Self::Fault(error),
        };
        match code.as_deref().unwrap_or_default() {
            // 22007, not a date: see `Resource::change`
            "22007" | "23505" | "40001" | "40P01" => Self::Conflict,
            LOCKED | "57014" => Self::Busy(error),
            // no disk, no memory, no connection left; read-only after a failover; shutting down
            code if ["08", "53", "28", "3D"].contains(&class(code))
                || [
                    "25006", "57P01", "57P02", "57P03", "57P04", "57P05", "25P03",
                ]
                .contains(&code) =>
            {
                Self::Disconnected(error)
            }
            code if class(code) == "22" || code == "54000" => Self::Value(error),
            code if class(code) == "23" => Self::Row(error),
            _ => Self::Fault(error),
        }
    }
}

/// Whether Postgres has no room on its disk or in its memory: another attempt would find none either.
#[must_use]
pub fn lacks_room(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|inner| inner.code());
    matches!(code.as_deref(), Some("53100" | "53200" | "53400"))
}

/// The first two characters of an SQLSTATE.
fn class(code: &str) -> &str {
    code.get(..2).unwrap_or_default()
}

impl Failure {
    /// Whether one row of a batch is to blame, so that the others could be written without it.
    #[must_use]
    pub fn is_of_one_row(&self) -> bool {
        matches!(self, Self::Value(_) | Self::Row(_))
    }

    /// Whether somebody else held a lock for longer than was waited: nothing was done.
    #[must_use]
    pub fn is_of_a_lock(&self) -> bool {
        let Self::Busy(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().as_deref() == Some(LOCKED)
    }

    /// Whether the database could not be reached, or not to the end.
    #[must_use]
    pub fn is_of_the_database(&self) -> bool {
        matches!(self, Self::Disconnected(_) | Self::CommitLost(_))
    }

    /// What a failed `commit` means: only Postgres's own ERROR proves that it was not done.
    #[must_use]
    pub fn of_commit(error: sqlx::Error) -> Self {
        let refused = match &error {
            sqlx::Error::Database(inner) => inner
                .try_downcast_ref::<PgDatabaseError>()
                .is_some_and(|error| matches!(error.severity(), PgSeverity::Error)),
            _ => false,
        };
        if refused {
            Self::from(error)
        } else {
            Self::CommitLost(error)
        }
    }

    /// The same failure when an earlier commit of the same writes got no answer: they may be stored.
    #[must_use]
    pub fn after_lost_commit(self) -> Self {
        match self {
            Self::Conflict => Self::CommitLost(sqlx::Error::Protocol("lost to others".to_owned())),
            Self::Disconnected(error)
            | Self::CommitLost(error)
            | Self::Value(error)
            | Self::Row(error)
            | Self::Busy(error)
            | Self::Fault(error) => Self::CommitLost(error),
        }
    }

    /// What the caller of a read, or of a write that is not tried again, is told.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Conflict | Self::Busy(_) => Error::Overloaded,
            Self::Disconnected(error) => Error::DatabaseUnavailable(error.into()),
            Self::CommitLost(error) => Error::OutcomeUnknown(error.into()),
            Self::Value(error) => Error::ValueRefused(error.into()),
            Self::Row(error) | Self::Fault(error) => Error::internal(error),
        }
    }
}

/// What the caller of a failed read is told.
#[must_use]
pub fn of_read(error: sqlx::Error) -> Error {
    Failure::from(error).into_error()
}
