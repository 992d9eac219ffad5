//! The memory that all bodies of the process may take together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// A process's memory for bodies, in bytes. Clones share it.
#[derive(Clone)]
pub struct BodyBudget {
    free_bytes: Arc<Semaphore>,
    total_bytes: u32,
}

/// Bytes taken from the budget; they go back when it is dropped.
#[derive(Debug)]
pub struct BudgetPermit(OwnedSemaphorePermit);

impl Default for BodyBudget {
    /// 64 MiB.
    fn default() -> Self {
        Self::new(64 * 1024 * 1024)
    }
}

impl BodyBudget {
    /// A budget of `total_bytes`.
    #[must_use]
    pub fn new(total_bytes: u32) -> Self {
        Self {
            free_bytes: Arc::new(Semaphore::new(total_bytes as usize)),
            total_bytes,
        }
    }

    /// Takes bytes now.
    ///
    /// # Errors
    /// `Overloaded` when fewer are free.
    pub fn acquire(&self, bytes: usize) -> Result<BudgetPermit, Error> {
        let bytes = u32::try_from(bytes).map_err(|_| Error::Overloaded)?;
        let permit = Arc::clone(&self.free_bytes).try_acquire_many_owned(bytes);
        permit.map(BudgetPermit).map_err(|_| Error::Overloaded)
    }

    /// Waits until the bytes are free; for streams, which can let their client wait. Who holds a
    /// permit must not wait for another: two that do so would wait for each other.
    ///
    /// # Errors
    /// `Overloaded` when the whole budget is smaller.
    pub async fn acquire_waiting(&self, bytes: usize) -> Result<BudgetPermit, Error> {
        let wanted = u32::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= self.total_bytes);
        let wanted = wanted.ok_or(Error::Overloaded)?;
        let permit = Arc::clone(&self.free_bytes)
            .acquire_many_owned(wanted)
            .await;
        permit.map(BudgetPermit).map_err(|_| Error::Overloaded)
    }

    /// Bytes that nobody holds.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.free_bytes.available_permits()
    }
}

impl BudgetPermit {
    /// Adds the bytes of another permit of the same budget.
    pub fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_used_up_budget_refuses_until_a_permit_is_dropped() {
        let budget = BodyBudget::new(100);
        let mut held = budget.acquire(60).expect("60 of 100");
        held.merge(budget.acquire(40).expect("the other 40"));
        assert!(matches!(budget.acquire(1), Err(Error::Overloaded)));
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire_waiting(100).await }
        });
        drop(held);
        drop(waiting.await.expect("no panic").expect("all of it"));
        assert_eq!(budget.free_bytes(), 100);
        assert!(matches!(
            budget.acquire_waiting(101).await,
            Err(Error::Overloaded)
        ));
    }
}
