//! A transaction that can't be left open behind somebody's back.
//!
//! sqlx gives a connection back to the pool when the future that was beginning a transaction is
//! dropped, and the next borrower then stands inside it. Here a connection whose transaction was
//! neither committed nor rolled back, however that came about, is closed instead.

use sqlx::Executor as _;

use super::failure::Failure;
use crate::database::{Connection, Database, Lent};
use crate::error::Error;

/// An open transaction on a connection of its own.
pub struct Transaction {
    connection: Lent,
    settled: bool,
}

impl Transaction {
    /// Takes a connection and begins.
    ///
    /// # Errors
    /// When no connection can be had.
    pub async fn begin(pool: &Database) -> sqlx::Result<Self> {
        Self::begin_on(pool.acquire().await?).await
    }

    /// Takes a connection and begins, with a short wait for locks until [`Self::be_patient`].
    ///
    /// # Errors
    /// When no connection can be had.
    pub async fn begin_impatiently(pool: &Database) -> sqlx::Result<Self> {
        let begin = "begin; set local lock_timeout = '250ms'";
        Self::begin_by(pool.acquire().await?, begin).await
    }

    /// Begins on a connection that was used for reading before.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn begin_on(connection: Lent) -> sqlx::Result<Self> {
        Self::begin_by(connection, "begin").await
    }

    /// Waits for locks as long as usual from here on.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn be_patient(&mut self) -> sqlx::Result<()> {
        self.connection
            .execute("set local lock_timeout = '5s'")
            .await?;
        Ok(())
    }

    async fn begin_by(connection: Lent, statement: &'static str) -> sqlx::Result<Self> {
        let mut transaction = Self {
            connection,
            settled: false,
        };
        transaction.connection.execute(statement).await?;
        Ok(transaction)
    }

    /// Where statements run.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// A `Database` error of severity ERROR: not committed. Anything else: it may be committed.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        self.connection.execute("commit").await?;
        self.settled = true;
        Ok(())
    }

    /// Commits what went well and undoes what did not.
    ///
    /// # Errors
    /// What the work, or the commit, failed with.
    pub async fn end<T>(self, result: sqlx::Result<T>) -> Result<T, Failure> {
        match result {
            Ok(value) => {
                self.commit().await.map_err(Failure::of_commit)?;
                Ok(value)
            }
            Err(error) => {
                self.rollback().await;
                Err(error.into())
            }
        }
    }

    /// Commits what went well and undoes what did not, or what was refused.
    ///
    /// # Errors
    /// The refusal, or what the caller of a write is told of the database's failure.
    pub async fn conclude<T>(self, result: sqlx::Result<Result<T, Error>>) -> Result<T, Error> {
        match result {
            Ok(Ok(value)) => {
                let committed = self.commit().await;
                committed.map_err(|error| Failure::of_commit(error).into_error())?;
                Ok(value)
            }
            Ok(Err(refusal)) => {
                self.rollback().await;
                Err(refusal)
            }
            Err(error) => {
                self.rollback().await;
                Err(Failure::from(error).into_error())
            }
        }
    }

    /// Undoes everything. A connection that can't even do that is closed, which undoes it too.
    pub async fn rollback(mut self) {
        self.settled = self.connection.execute("rollback").await.is_ok();
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.settled {
            self.connection.cut();
        }
    }
}
