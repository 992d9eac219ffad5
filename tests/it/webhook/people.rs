//! What people write and wish: the service window, and whether they want messages.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::meta::Meta;
use crate::support::webhooks::{From, tell};
use crate::support::whatsapp::{ADA, number_of, post_message, start, text};

const BSUID: &str = "FR.13491208655302741918";

/// Somebody who writes to a store, and what the store may answer.
struct Talk {
    app: App,
    number: String,
    count: u32,
}

impl Talk {
    async fn begin() -> Self {
        let app = start(&Meta::start().await).await;
        let number = number_of(app.store_id);
        Self {
            app,
            number,
            count: 0,
        }
    }

    /// A second of the service's clock, so many seconds from now.
    fn at(&self, seconds: i64) -> i64 {
        self.app.clock.now().timestamp() + seconds
    }

    /// A new message; gives the event, to be told again.
    async fn says(&mut self, from: From<'_>, words: &str, at: i64) -> Value {
        self.count += 1;
        let id = format!("wamid.{}", self.count);
        let said = from.writes(&self.number, &id, words, at);
        self.again(&said).await;
        said
    }

    async fn again(&self, said: &Value) {
        tell(&self.app, std::slice::from_ref(said)).await;
    }

    async fn prefers(&self, from: From<'_>, wish: &str, at: i64) {
        let wished = from.prefers(&self.number, wish, at);
        tell(&self.app, &[wished]).await;
    }

    /// What a free-form send is answered with: nothing is wrong, or the problem's code.
    async fn send(&self) -> String {
        let body = text(self.app.store_id, ADA, "Hello");
        let answer = post_message(&self.app, &body).await;
        match answer.status.as_u16() {
            201 => "sent".to_owned(),
            422 => answer.code(),
            other => panic!("{other}: {}", answer.text),
        }
    }

    async fn end(self) {
        self.app.stop().await;
    }
}

const CLOSED: &str = "outside_service_window";
const OPTED_OUT: &str = "contact_opted_out";

#[tokio::test]
async fn a_message_opens_the_service_window_for_a_day() {
    let mut talk = Talk::begin().await;
    assert_eq!(talk.send().await, CLOSED);
    let said = talk
        .says(From::phone(ADA), "Is it in stock?", talk.at(0))
        .await;
    assert_eq!(talk.send().await, "sent");
    talk.app.clock.advance(TimeDelta::hours(23));
    assert_eq!(talk.send().await, "sent");
    talk.app.clock.advance(TimeDelta::hours(1));
    assert_eq!(talk.send().await, CLOSED);
    // The same message told again, a day late, opens nothing.
    talk.again(&said).await;
    assert_eq!(talk.send().await, CLOSED);
    // Nor does one that is new to us but was written long ago.
    talk.says(From::phone(ADA), "Hello?", talk.at(-90_000))
        .await;
    assert_eq!(talk.send().await, CLOSED);
    talk.says(From::phone(ADA), "Hello!", talk.at(-60)).await;
    assert_eq!(talk.send().await, "sent");
    talk.end().await;
}

#[tokio::test]
async fn a_message_counts_once_also_when_it_does_not_say_when_it_was_written() {
    let mut talk = Talk::begin().await;
    let mut said = From::phone(ADA).writes(&talk.number, "wamid.timeless", "Hello", 0);
    said["messages"][0]["timestamp"] = json!("soon");
    talk.again(&said).await;
    assert_eq!(
        talk.send().await,
        "sent",
        "it was written by now at the latest"
    );
    talk.app.clock.advance(TimeDelta::hours(25));
    talk.again(&said).await;
    assert_eq!(talk.send().await, CLOSED, "that was yesterday's");
    talk.says(From::phone(ADA), "Hello", talk.at(0)).await;
    assert_eq!(talk.send().await, "sent");
    talk.end().await;
}

#[tokio::test]
async fn an_older_message_that_comes_late_does_not_shorten_the_window() {
    let mut talk = Talk::begin().await;
    talk.says(From::phone(ADA), "Second", talk.at(0)).await;
    talk.says(From::phone(ADA), "First", talk.at(-80_000)).await;
    talk.app.clock.advance(TimeDelta::hours(20));
    assert_eq!(talk.send().await, "sent");
    talk.end().await;
}

#[tokio::test]
async fn somebody_known_by_the_providers_id_alone_is_joined_with_their_number_later() {
    let mut talk = Talk::begin().await;
    talk.says(From::user(BSUID), "Hello", talk.at(-10)).await;
    assert_eq!(
        talk.send().await,
        CLOSED,
        "nobody knows whose number this is"
    );
    talk.prefers(From::both(ADA, BSUID), "resume", talk.at(-5))
        .await;
    assert_eq!(talk.send().await, "sent", "the message was hers");
    assert_eq!(talk.app.count("contacts").await, 1);
    // From now on the id alone leads to the number.
    talk.app.clock.advance(TimeDelta::hours(25));
    assert_eq!(talk.send().await, CLOSED);
    talk.says(From::user(BSUID), "Hello again", talk.at(0))
        .await;
    assert_eq!(talk.send().await, "sent");
    talk.end().await;
}

#[tokio::test]
async fn two_contacts_that_turn_out_to_be_one_person_are_joined() {
    let mut talk = Talk::begin().await;
    talk.says(From::phone(ADA), "Hello", talk.at(-90_000)).await;
    talk.says(From::user(BSUID), "Hello", talk.at(-20)).await;
    assert_eq!(talk.app.count("contacts").await, 2);
    assert_eq!(talk.send().await, CLOSED);
    talk.says(From::both(ADA, BSUID), "It's me", talk.at(-85_000 - 10_000))
        .await;
    assert_eq!(talk.app.count("contacts").await, 1);
    assert_eq!(
        talk.send().await,
        "sent",
        "the window of the one is the other's"
    );
    talk.end().await;
}

#[tokio::test]
async fn somebody_with_a_new_number_is_heard_under_the_new_one() {
    let old = "+33611111111";
    let mut talk = Talk::begin().await;
    talk.says(From::both(old, BSUID), "Hello", talk.at(-90_000))
        .await;
    // The provider's id is the same, the number is another.
    talk.says(From::both(ADA, BSUID), "Hello again", talk.at(-30))
        .await;
    assert_eq!(
        talk.send().await,
        "sent",
        "who writes from a number is answered there"
    );
    talk.says(From::both(ADA, BSUID), "STOP", talk.at(-20))
        .await;
    assert_eq!(talk.send().await, OPTED_OUT, "and left alone there");
    // What comes without a number is the newest one's.
    talk.says(From::user(BSUID), "START", talk.at(-10)).await;
    assert_eq!(talk.send().await, "sent");
    let known: Vec<(Option<String>, Option<String>)> =
        sqlx::query_as("select phone, provider_user_id from contacts order by phone")
            .fetch_all(&talk.app.pool)
            .await
            .expect("read");
    let expected = [(old, None), (ADA, Some(BSUID))];
    let expected = expected.map(|(phone, user)| (Some(phone.to_owned()), user.map(str::to_owned)));
    assert_eq!(known, expected);
    talk.end().await;
}

#[tokio::test]
async fn of_two_joined_contacts_the_newer_wish_counts() {
    for (first, second, expected) in [("STOP", "START", "sent"), ("START", "STOP", OPTED_OUT)] {
        for (first_from, second_from) in [
            (From::phone(ADA), From::user(BSUID)),
            (From::user(BSUID), From::phone(ADA)),
        ] {
            let mut talk = Talk::begin().await;
            talk.says(first_from, first, talk.at(-30)).await;
            talk.says(second_from, second, talk.at(-20)).await;
            talk.says(From::both(ADA, BSUID), "It's me", talk.at(-10))
                .await;
            let case = format!("{first} by {first_from:?}, then {second} by {second_from:?}");
            assert_eq!(talk.send().await, expected, "{case}");
            talk.end().await;
        }
    }
}

#[tokio::test]
async fn stop_ends_messages_and_start_takes_it_back_whatever_comes_again() {
    let mut talk = Talk::begin().await;
    talk.says(From::phone(ADA), "Hello", talk.at(-50)).await;
    assert_eq!(talk.send().await, "sent");
    let stop = talk.says(From::phone(ADA), "STOP", talk.at(-40)).await;
    assert_eq!(talk.send().await, OPTED_OUT);
    let start = talk.says(From::phone(ADA), "Start", talk.at(-30)).await;
    assert_eq!(talk.send().await, "sent");
    talk.again(&stop).await;
    assert_eq!(talk.send().await, "sent", "a repeated STOP is an old one");
    // Also when the provider gives the old one a new id.
    talk.says(From::phone(ADA), "stop", talk.at(-40)).await;
    assert_eq!(talk.send().await, "sent");
    talk.says(From::phone(ADA), "STOP", talk.at(-20)).await;
    assert_eq!(talk.send().await, OPTED_OUT);
    talk.again(&start).await;
    talk.again(&stop).await;
    assert_eq!(talk.send().await, OPTED_OUT, "nor does an old START count");
    talk.end().await;
}

#[tokio::test]
async fn of_two_wishes_in_one_second_stop_counts() {
    let mut talk = Talk::begin().await;
    talk.says(From::phone(ADA), "START", talk.at(-30)).await;
    let same = talk.at(-20);
    talk.says(From::phone(ADA), "START", same).await;
    talk.says(From::phone(ADA), "STOP", same).await;
    assert_eq!(
        talk.send().await,
        OPTED_OUT,
        "in doubt nobody is written to"
    );
    talk.end().await;
}

#[tokio::test]
async fn a_setting_counts_like_a_word_and_opens_no_window() {
    let mut talk = Talk::begin().await;
    talk.prefers(From::phone(ADA), "resume", talk.at(-50)).await;
    assert_eq!(talk.send().await, CLOSED, "a setting is no message");
    talk.says(From::phone(ADA), "Hello", talk.at(-45)).await;
    talk.prefers(From::phone(ADA), "stop", talk.at(-40)).await;
    assert_eq!(talk.send().await, OPTED_OUT);
    talk.prefers(From::phone(ADA), "paused", talk.at(-35)).await;
    assert_eq!(
        talk.send().await,
        OPTED_OUT,
        "of an unknown setting nothing is known"
    );
    talk.prefers(From::phone(ADA), "resume", talk.at(-30)).await;
    assert_eq!(talk.send().await, "sent");
    talk.prefers(From::phone(ADA), "stop", talk.at(-40)).await;
    assert_eq!(talk.send().await, "sent", "an old one");
    talk.end().await;
}

#[tokio::test]
async fn events_in_one_batch_count_by_their_time_not_by_their_place() {
    let talk = Talk::begin().await;
    let (number, from) = (talk.number.clone(), From::phone(ADA));
    let start = from.writes(&number, "wamid.2", "START", talk.at(-10));
    let stop = from.writes(&number, "wamid.1", "STOP", talk.at(-20));
    tell(&talk.app, &[start, stop]).await;
    assert_eq!(talk.send().await, "sent");
    let known: Vec<(Option<String>, Option<String>)> =
        sqlx::query_as("select phone, name from contacts")
            .fetch_all(&talk.app.pool)
            .await
            .expect("read");
    assert_eq!(known, [(Some(ADA.to_owned()), Some("Ada".to_owned()))]);
    assert_eq!(json!(talk.app.count("inbound_messages").await), json!(2));
    talk.end().await;
}
