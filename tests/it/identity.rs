//! Who is this customer? The rules of identity, the customer inside an order, and erasure.

mod embedded;
mod erasure;
mod rules;
