//! The committed document is the one that the code makes.

use keyfold::openapi;

#[test]
fn the_committed_document_is_not_stale() {
    let committed = include_str!("../../openapi.yaml");
    assert!(
        committed == openapi::yaml(),
        "openapi.yaml is stale: write it again with `cargo run -- openapi > openapi.yaml`"
    );
}
