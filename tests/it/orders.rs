//! An order's life.

use keyfold::engine::Resource as _;
use keyfold::resources::orders::Order;

use crate::support::app::App;

#[tokio::test]
async fn the_same_order_pushed_twice_changes_nothing_the_second_time() {
    let app = App::start().await;
    let [order, _] = Order::examples();
    let first = app.post("orders", &order).await.expect(201);
    let second = app.post("orders", &order).await.expect(200);
    assert_eq!(
        (first.outcome(), second.outcome()),
        ("created", "unchanged")
    );
    assert_eq!(first.json(), second.json());
    assert_eq!(app.count("events").await, 2);
    app.stop().await;
}
