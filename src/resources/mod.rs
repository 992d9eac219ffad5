//! The resources and their registry. A new resource is a migration, a file here, and its line in
//! [`for_each`].

pub mod catalog;
pub mod checkouts;
pub mod customers;
pub mod orders;
pub mod shipments;

use crate::engine::Resource;
use crate::engine::events::NameLookup;
use crate::erasure::Eraser;

/// Does something for every resource: routes, document, tests.
pub trait Visitor {
    /// Called once per resource, in the order of the document.
    fn visit<R: Resource>(&mut self);
}

/// The registry.
pub fn for_each(visitor: &mut impl Visitor) {
    visitor.visit::<orders::Order>();
    visitor.visit::<checkouts::Checkout>();
    visitor.visit::<customers::Customer>();
    visitor.visit::<shipments::Shipment>();
}

/// The resources whose events don't keep external ids, and who knows them.
#[must_use]
pub fn names() -> Vec<(&'static str, NameLookup)> {
    vec![(customers::Customer::PATH, |connection, store_id, ids| {
        Box::pin(customers::external_ids(connection, store_id, ids))
    })]
}

/// Everybody who keeps something about a person, in the order in which rows are locked.
#[must_use]
pub fn erasers() -> Vec<Eraser> {
    vec![
        |connection, person| Box::pin(customers::erase::forget(connection, person)),
        |connection, person| {
            Box::pin(async move {
                match person.customer_id {
                    Some(id) => orders::forget_customer(connection, person.store_id, id).await,
                    None => Ok(()),
                }
            })
        },
        |connection, person| {
            Box::pin(async move {
                match person.customer_id {
                    Some(id) => checkouts::forget_customer(connection, person.store_id, id).await,
                    None => Ok(()),
                }
            })
        },
    ]
}

/// The paths of all resources.
#[must_use]
pub fn paths() -> Vec<&'static str> {
    struct Paths(Vec<&'static str>);
    impl Visitor for Paths {
        fn visit<R: Resource>(&mut self) {
            self.0.push(R::PATH);
        }
    }
    let mut paths = Paths(Vec::new());
    for_each(&mut paths);
    paths.0
}
