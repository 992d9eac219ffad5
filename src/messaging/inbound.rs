//! What the provider tells us: statuses of messages, and what people write.
//!
//! An event is checked (its signature over the raw bytes, before anything is parsed), taken apart
//! into items of one store each, stored, and answered; a worker looks at it later. Events come twice
//! and in any order: a status is applied by its rank, a message of a person counts once by its id, a
//! wish only if it is newer than the one that is known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State as Given};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use metrics::counter;
use ring::hmac;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::types::Json;
use uuid::Uuid;

use super::Messaging;
use super::channels::{self, ProviderName};
use super::contacts::{self, Heard, Sender, Wish};
use super::input::SandboxInbound;
use super::messages::{self, News};
use super::providers::whatsapp::{detail, read_reference, without_nul};
use super::status::{Status, Step};
use crate::config::Secret;
use crate::database::Connection;
use crate::edge::{self, Holder};
use crate::engine::failure::{Failure, of_read};
use crate::engine::http::{Service, json as answer_json};
use crate::engine::transaction::Transaction;
use crate::error::Error;
use crate::outbox::{self, Handler, Leased, Settlement, Work};
use crate::state::State;
use crate::values::{JsonError, Phone, parse};

/// Items of the provider's events, in the outbox.
pub const KIND: &str = "inbound";
/// How long the body of an event may take to arrive.
const EVENT_TIME: Duration = Duration::from_secs(10);
/// Bytes of an event; Meta sends at most 3 MB.
const MOST_EVENT_BYTES: usize = 4 * 1_024 * 1_024;
const SIGNATURE: &str = "x-hub-signature-256";
/// How long ids of people's messages are remembered; Meta repeats an event for up to 7 days.
const REMEMBERED: TimeDelta = TimeDelta::days(14);
/// How long items are kept that could not be looked at, like their rows of the outbox.
const KEPT: TimeDelta = TimeDelta::days(30);
/// Rows deleted at a time.
const SLICE: i64 = 1_000;
/// How long an item waits after the database failed.
const AFTER_FAILURE: TimeDelta = TimeDelta::seconds(5);
/// Attempts before an item is given up.
const MOST_ATTEMPTS: i32 = 20;

/// `GET /webhooks/whatsapp`: the provider proves that it may send events here.
///
/// # Errors
/// `VerificationRefused`.
pub async fn verify(Given(service): Given<Service>, request: Request) -> Result<Response, Error> {
    let query = request.uri().query().unwrap_or_default();
    let pairs: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let said = |name: &str| pairs.get(name).map_or("", String::as_str);
    let expected = service.state.config.whatsapp_verify_token.as_ref();
    let is_known = expected.is_some_and(|token| is_same(token, said("hub.verify_token")));
    if said("hub.mode") != "subscribe" || !is_known {
        return Err(Error::VerificationRefused);
    }
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    let challenge = said("hub.challenge").to_owned();
    Ok(([(header::CONTENT_TYPE, kind)], challenge).into_response())
}

/// Compares in a time that tells nothing of the secret.
fn is_same(secret: &Secret, text: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"keyfold compares");
    let tag = hmac::sign(&key, secret.expose().as_bytes());
    hmac::verify(&key, text.as_bytes(), tag.as_ref()).is_ok()
}

/// `POST /webhooks/whatsapp`: an event of the provider.
///
/// # Errors
/// `SignatureInvalid`, a body that can't be read, or that the database fails: then the provider
/// sends it again.
pub async fn receive(
    Given(service): Given<Service>,
    Extension(messaging): Extension<Messaging>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    // What can't be signed is refused before it takes any memory.
    let secret = service.state.config.whatsapp_app_secret.as_ref();
    let (Some(secret), Some(tag)) = (secret, signature(&parts.headers)) else {
        return Err(refused());
    };
    service.gate.check(Holder::Nobody)?;
    if parts.headers.contains_key(header::CONTENT_ENCODING) {
        // The signature is of the bytes as they were sent.
        return Err(Error::UnsupportedContentEncoding);
    }
    // A pot of its own: whoever fills it takes nothing from the API. Whose body it is, nobody knows
    // before it is there; so it has to be there soon.
    let held = messaging.event_bodies.take(Holder::Nobody, 0)?;
    let body = edge::read_whole(body, &parts.headers, MOST_EVENT_BYTES, held, EVENT_TIME).await?;
    if !is_signed(secret, &tag, &body) {
        return Err(refused());
    }
    // Strict as everywhere: repeated members and endless depth are refused here too.
    parse(&body)?;
    let event: Value = serde_json::from_slice(&body).map_err(|error| {
        Error::Json(JsonError::Syntax {
            what: "a value can't be read".to_owned(),
            line: error.line(),
            column: error.column(),
        })
    })?;
    drop(body);
    let items = take_apart(&event);
    if !items.is_empty() {
        let work = move |state: State| async move { keep(&state, items).await };
        for (store_id, id) in service.run(Holder::Nobody, work).await? {
            messaging.hints.give(store_id, id);
        }
    }
    answer_json(StatusCode::OK, &json!({ "received": true }))
}

fn refused() -> Error {
    counter!("keyfold_webhook_refused_total").increment(1);
    Error::SignatureInvalid
}

/// The signature that a request claims: exactly one, of the right form.
fn signature(headers: &HeaderMap) -> Option<[u8; 32]> {
    let mut values = headers.get_all(SIGNATURE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    value.as_bytes().strip_prefix(b"sha256=").and_then(unhex)
}

/// Whether the provider signed these bytes.
fn is_signed(secret: &Secret, tag: &[u8; 32], body: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    hmac::verify(&key, body, tag).is_ok()
}

/// The 32 bytes of 64 hexadecimal digits.
fn unhex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        let both = value(pair[0])? * 16 + value(pair[1])?;
        *byte = u8::try_from(both).ok()?;
    }
    Some(bytes)
}

/// One message, status or wish, and the number that it is about.
#[derive(Debug, PartialEq)]
struct Item {
    phone_number_id: String,
    payload: Value,
}

/// The items of an event. What is of no known kind is none.
fn take_apart(event: &Value) -> Vec<Item> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut items = Vec::new();
    for entry in list(&event["entry"]) {
        for change in list(&entry["changes"]) {
            let value = &change["value"];
            let number = value.pointer("/metadata/phone_number_id");
            let Some(number) = number.and_then(Value::as_str) else {
                continue;
            };
            let contacts = list(&value["contacts"]);
            for (kind, member) in [
                ("status", "statuses"),
                ("message", "messages"),
                ("wish", "user_preferences"),
            ] {
                let whats = list(&value[member]);
                let by_place = kind != "status" && whats.len() == contacts.len();
                for (at, what) in whats.into_iter().enumerate() {
                    let contact = contact_of(&contacts, &what, by_place.then_some(at));
                    items.push(Item {
                        phone_number_id: number.to_owned(),
                        payload: without_nul(json!({
                            "kind": kind, "what": what, "contact": contact
                        })),
                    });
                }
            }
        }
    }
    items
}

/// The contact that an item is about: by its number, else by its place, if there is one for each.
fn contact_of(contacts: &[Value], what: &Value, place: Option<usize>) -> Value {
    let by_number = contacts.iter().find(|contact| {
        let ids = [&contact["wa_id"], &contact["user_id"]];
        let names = [
            &what["from"],
            &what["from_user_id"],
            &what["wa_id"],
            &what["user_id"],
        ];
        ids.iter()
            .any(|id| id.is_string() && names.iter().any(|name| name == id))
    });
    let by_place = || place.and_then(|place| contacts.get(place));
    by_number.or_else(by_place).cloned().unwrap_or_default()
}

/// Stores items to be looked at later; gives them.
async fn keep(state: &State, items: Vec<Item>) -> Result<Vec<(i64, Uuid)>, Error> {
    let mut stores: BTreeMap<String, Option<i64>> = BTreeMap::new();
    for item in &items {
        if !stores.contains_key(&item.phone_number_id) {
            let store = channels::store_of_number(&state.pool, &item.phone_number_id);
            let store = store.await.map_err(of_read)?;
            stores.insert(item.phone_number_id.clone(), store);
        }
    }
    let mut kept: BTreeMap<i64, Vec<(Uuid, Value)>> = BTreeMap::new();
    for item in items {
        // Somebody else's number: perhaps a store that was set to another channel.
        if let Some(store_id) = stores.get(&item.phone_number_id).copied().flatten() {
            let id = state.clock.new_id();
            kept.entry(store_id).or_default().push((id, item.payload));
        }
    }
    let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
    for (store_id, items) in &kept {
        if let Err(error) = insert(transaction.connection(), *store_id, items, state).await {
            transaction.rollback().await;
            return Err(of_read(error));
        }
    }
    let committed = transaction.commit().await;
    committed.map_err(|error| Failure::of_commit(error).into_error())?;
    Ok(kept
        .into_iter()
        .flat_map(|(store_id, items)| items.into_iter().map(move |(id, _)| (store_id, id)))
        .collect())
}

async fn insert(
    connection: &mut Connection,
    store_id: i64,
    items: &[(Uuid, Value)],
    state: &State,
) -> sqlx::Result<()> {
    let now = state.clock.now();
    let ids: Vec<Uuid> = items.iter().map(|(id, _)| *id).collect();
    let payloads: Vec<&Value> = items.iter().map(|(_, payload)| payload).collect();
    sqlx::query!(
        "insert into inbound_items (store_id, id, payload, received_at)
        select $1, id, payload, $4
        from unnest($2::uuid[], $3::jsonb[]) as new (id, payload)",
        store_id,
        &ids,
        &payloads as &[&Value],
        now,
    )
    .execute(&mut *connection)
    .await?;
    outbox::append(connection, store_id, KIND, &ids, now).await
}

/// Looks at items.
#[must_use]
pub fn handler() -> Handler {
    Arc::new(|state, work| Box::pin(async move { look_at(&state, work).await }))
}

async fn look_at(state: &State, work: Work) {
    let store_id = work.store_id;
    match look_at_all(state, store_id, &work.rows).await {
        Ok(()) => return,
        Err(failure) => tracing::warn!(store_id, %failure, "events are looked at one by one"),
    }
    for row in &work.rows {
        if let Err(failure) = look_at_all(state, store_id, std::slice::from_ref(row)).await
            && let Err(failure) = put_off(state, row, &failure).await
        {
            let leased = "an event waits until its lease has run out";
            tracing::warn!(store_id, %failure, "{leased}");
        }
    }
}

/// An item that could not be looked at is tried again, some times.
async fn put_off(state: &State, row: &Leased, failure: &Failure) -> Result<(), Failure> {
    let code = failure.to_string();
    let code: String = code.chars().take_while(|c| *c != ':').collect();
    let settlement = if row.attempt >= MOST_ATTEMPTS {
        Settlement::Dead { code }
    } else {
        Settlement::Again {
            due_at: state.clock.now() + AFTER_FAILURE,
            code: Some(code),
        }
    };
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    let settled = async {
        outbox::count_attempt(&mut *connection, row.store_id, row.id).await?;
        let settled = [(row.id, settlement)];
        outbox::settle(&mut *connection, row.store_id, row.lease_id, &settled).await
    }
    .await;
    transaction.end(settled).await.map(|_ours| ())
}

/// Looks at items of one store in one transaction.
async fn look_at_all(state: &State, store_id: i64, rows: &[Leased]) -> Result<(), Failure> {
    let mut transaction = Transaction::begin(&state.pool).await?;
    let looked = in_transaction(state, transaction.connection(), store_id, rows).await;
    transaction.end(looked).await
}

async fn in_transaction(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    rows: &[Leased],
) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    // Gone at once: what they hold names people.
    let payloads: Vec<Value> = sqlx::query_scalar!(
        r#"delete from inbound_items
        where store_id = $1 and id = any($2)
        returning payload as "payload: Json<Value>""#,
        store_id,
        &ids,
    )
    .fetch_all(&mut *connection)
    .await?
    .into_iter()
    .map(|payload| payload.0)
    .collect();
    let mut heard: Vec<&Value> = Vec::new();
    let mut news = Vec::new();
    for payload in &payloads {
        if payload["kind"] == "status" {
            news.extend(status_news(state, connection, store_id, &payload["what"]).await?);
        } else {
            heard.push(payload);
        }
    }
    // Contacts, the outbox, messages, each sorted: everybody's order of locks.
    lock_senders(connection, store_id, &heard).await?;
    heard.sort_by_key(|payload| sender_key(payload));
    for payload in heard {
        hear(state, connection, store_id, payload).await?;
    }
    // Whatever the provider says of a message, it has it: nobody needs to hand it over.
    let mut settled: Vec<Uuid> = news.iter().map(|news| news.id).chain(ids).collect();
    settled.sort_unstable();
    outbox::remove(connection, store_id, &settled).await?;
    messages::apply(connection, store_id, &news, state.clock.now()).await?;
    Ok(())
}

async fn lock_senders(
    connection: &mut Connection,
    store_id: i64,
    heard: &[&Value],
) -> sqlx::Result<()> {
    if heard.is_empty() {
        return Ok(());
    }
    let phones: Vec<Phone> = heard
        .iter()
        .filter_map(|payload| phone_of(payload))
        .collect();
    let users: Vec<String> = heard
        .iter()
        .filter_map(|payload| user_of(payload))
        .collect();
    let phones: Vec<&str> = phones.iter().map(Phone::as_str).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    contacts::lock_all(connection, store_id, &phones, &users).await
}

/// Takes out of what nobody has looked at yet what it says of a person: what they wrote goes, what
/// became of messages to them stays, without their number. For their erasure.
///
/// # Errors
/// When the database fails.
pub async fn forget_person(
    connection: &mut Connection,
    store_id: i64,
    phone: &str,
    provider_user_id: Option<&str>,
) -> sqlx::Result<()> {
    let digits = phone.trim_start_matches('+');
    let waiting = sqlx::query!(
        r#"select id, payload as "payload: Json<Value>"
        from inbound_items
        where store_id = $1
            and (position($2 in payload::text) > 0 or position($3 in payload::text) > 0)
        order by id
        for update"#,
        store_id,
        digits,
        provider_user_id.unwrap_or(digits),
    )
    .fetch_all(&mut *connection)
    .await?;
    let (mut gone, mut kept, mut stripped) = (Vec::new(), Vec::new(), Vec::new());
    for item in waiting {
        let payload = item.payload.0;
        let is_theirs = phone_of(&payload).is_some_and(|theirs| theirs.as_str() == phone)
            || (provider_user_id.is_some() && user_of(&payload).as_deref() == provider_user_id);
        if payload["kind"] == "status" {
            if is_about(&payload["what"], digits, provider_user_id) {
                kept.push(item.id);
                stripped.push(without_person(&payload["what"]));
            }
        } else if is_theirs {
            gone.push(item.id);
        }
    }
    sqlx::query!(
        "delete from inbound_items where store_id = $1 and id = any($2)",
        store_id,
        &gone,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "update inbound_items i
        set payload = stripped.payload
        from unnest($2::uuid[], $3::jsonb[]) as stripped (id, payload)
        where i.store_id = $1 and i.id = stripped.id",
        store_id,
        &kept,
        &stripped,
    )
    .execute(&mut *connection)
    .await?;
    outbox::remove(connection, store_id, &gone).await
}

/// Whether a status is one of a message to this person.
fn is_about(what: &Value, digits: &str, provider_user_id: Option<&str>) -> bool {
    let recipient = what["recipient_id"].as_str().unwrap_or_default();
    let user = what["recipient_user_id"].as_str();
    recipient.trim_start_matches('+') == digits || (user.is_some() && user == provider_user_id)
}

/// What is needed to apply a status, and nothing that names anybody.
fn without_person(what: &Value) -> Value {
    json!({ "kind": "status", "contact": null, "what": {
        "status": what["status"],
        "timestamp": what["timestamp"],
        "biz_opaque_callback_data": what["biz_opaque_callback_data"],
        "errors": [{ "code": what["errors"][0]["code"] }],
    }})
}

/// What a status says of a message of ours; none for others'.
async fn status_news(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    what: &Value,
) -> sqlx::Result<Option<News>> {
    let told = what["status"].as_str().and_then(Status::parse);
    let status = match told {
        Some(status @ (Status::Sent | Status::Failed | Status::Delivered | Status::Read)) => status,
        _ => return Ok(None),
    };
    let provider_message_id = what["id"].as_str().filter(|id| id.len() <= 512);
    let reference = what["biz_opaque_callback_data"].as_str();
    let referred = reference
        .and_then(read_reference)
        .filter(|(store, _)| *store == store_id)
        .map(|(_, id)| id);
    let id = match (referred, provider_message_id) {
        (Some(id), _) => Some(id),
        (None, Some(provider_id)) => {
            messages::by_provider_id(&mut *connection, store_id, provider_id).await?
        }
        (None, None) => None,
    };
    counter!("keyfold_statuses_total", "status" => status.as_str()).increment(1);
    let at = time(&what["timestamp"], state.clock.now());
    let error = &what["errors"][0];
    let step = match error["code"].as_i64() {
        Some(code) if status == Status::Failed => {
            Step::because(status, at, &code.to_string(), detail(error).as_deref())
        }
        _ if status == Status::Failed => Step::because(status, at, "provider_failed", None),
        _ => Step::plain(status, at),
    };
    Ok(id.map(|id| News {
        id,
        event_id: state.clock.new_id(),
        steps: vec![step],
        provider_message_id: provider_message_id.map(str::to_owned),
        requeue: false,
    }))
}

/// Seconds since 1970 as the provider writes them, as text; never later than now.
fn time(seconds: &Value, now: DateTime<Utc>) -> DateTime<Utc> {
    let number = match seconds {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    };
    number
        .and_then(|number| DateTime::from_timestamp(number, 0))
        .filter(|at| *at <= now && at.timestamp() >= 0)
        .unwrap_or(now)
}

/// Whom an item is from, for sorting.
fn sender_key(payload: &Value) -> String {
    let phone = phone_of(payload).map(|phone| phone.as_str().to_owned());
    phone.or_else(|| user_of(payload)).unwrap_or_default()
}

fn phone_of(payload: &Value) -> Option<Phone> {
    [
        &payload["what"]["from"],
        &payload["contact"]["wa_id"],
        &payload["what"]["wa_id"],
    ]
    .iter()
    .find_map(|value| value.as_str())
    .and_then(|digits| Phone::parse(&format!("+{}", digits.trim_start_matches('+')), None).ok())
}

fn user_of(payload: &Value) -> Option<String> {
    [
        &payload["what"]["from_user_id"],
        &payload["contact"]["user_id"],
        &payload["what"]["user_id"],
    ]
    .iter()
    .find_map(|value| value.as_str())
    .filter(|id| (1..=255).contains(&id.chars().count()))
    .map(str::to_owned)
}

/// Takes in what a person wrote or wishes.
async fn hear(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    payload: &Value,
) -> sqlx::Result<()> {
    let (phone, user) = (phone_of(payload), user_of(payload));
    if phone.is_none() && user.is_none() {
        return Ok(());
    }
    let what = &payload["what"];
    let now = state.clock.now();
    let at = time(&what["timestamp"], now);
    let heard = if payload["kind"] == "wish" {
        let wish = match what["value"].as_str().unwrap_or_default() {
            "stop" => Wish::Stop,
            "resume" => Wish::Start,
            _ => return Ok(()),
        };
        Heard {
            wrote_at: None,
            wish: Some(wish),
            said_at: at,
        }
    } else {
        let id = what["id"].as_str().unwrap_or_default();
        if !is_first(connection, store_id, id, now).await? {
            return Ok(());
        }
        let text = what.pointer("/text/body").or(what.pointer("/button/text"));
        Heard {
            wrote_at: Some(at),
            wish: text.and_then(Value::as_str).and_then(Wish::of),
            said_at: at,
        }
    };
    let name = payload
        .pointer("/contact/profile/name")
        .and_then(Value::as_str);
    let name: Option<String> = name.map(|name| name.chars().take(255).collect());
    let sender = Sender {
        phone: phone.as_ref().map(Phone::as_str),
        provider_user_id: user.as_deref(),
        name: name.as_deref(),
    };
    let id = state.clock.new_id();
    contacts::heard_from(connection, store_id, &sender, heard, id, now).await
}

/// Whether a person's message is seen for the first time.
async fn is_first(
    connection: &mut Connection,
    store_id: i64,
    provider_id: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    if provider_id.is_empty() {
        return Ok(true);
    }
    let sha256: [u8; 32] = Sha256::digest(provider_id.as_bytes()).into();
    let inserted = sqlx::query!(
        "insert into inbound_messages (store_id, sha256, received_at)
        values ($1, $2, $3)
        on conflict (sha256, store_id) do nothing",
        store_id,
        &sha256[..],
        now,
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// An inbound message of the sandbox.
///
/// # Errors
/// `ChannelNotSandbox`, or that the database fails.
pub async fn from_sandbox(
    state: &State,
    store_id: i64,
    said: &SandboxInbound,
) -> Result<(), Error> {
    let provider = channels::provider(&state.pool, store_id).await;
    if provider.map_err(of_read)? != ProviderName::Sandbox {
        return Err(Error::ChannelNotSandbox);
    }
    let now = state.clock.now();
    let sender = Sender {
        phone: Some(said.from.as_str()),
        ..Sender::default()
    };
    let heard = Heard {
        wrote_at: Some(now),
        wish: Wish::of(&said.text),
        said_at: now,
    };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let connection = transaction.connection();
        let id = state.clock.new_id();
        let written = contacts::heard_from(connection, store_id, &sender, heard, id, now).await;
        let Err(failure) = transaction.end(written).await else {
            return Ok(());
        };
        // Somebody made the same contact; a second look finds it.
        if !matches!(failure, Failure::Conflict) || attempts == 5 {
            return Err(failure.into_error());
        }
    }
}

/// Forgets ids of people's messages that the provider will not repeat any more, and items that could
/// not be looked at in a month; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn purge(state: &State, store_id: i64) -> sqlx::Result<u64> {
    let now = state.clock.now();
    let mut deleted = sqlx::query!(
        "delete from inbound_items where store_id = $1 and received_at < $2",
        store_id,
        now - KEPT,
    )
    .execute(&state.pool)
    .await?
    .rows_affected();
    let before = now - REMEMBERED;
    loop {
        let slice = sqlx::query!(
            "delete from inbound_messages
            where store_id = $1
                and sha256 = any(array(
                    select sha256
                    from inbound_messages
                    where store_id = $1 and received_at < $2
                    order by received_at
                    limit $3
                ))",
            store_id,
            before,
            SLICE,
        )
        .execute(&state.pool)
        .await?
        .rows_affected();
        deleted += slice;
        if slice < SLICE.unsigned_abs() {
            return Ok(deleted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_providers_signature_over_these_bytes_counts() {
        let secret = Secret::new("app secret");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"app secret");
        let body = br#"{"entry":[]}"#;
        let tag = hmac::sign(&key, body);
        let hex: String = tag
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let signed = |value: &str, body: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(SIGNATURE, value.parse().expect("a header value"));
            signature(&headers).is_some_and(|tag| is_signed(&secret, &tag, body))
        };
        assert!(signed(&format!("sha256={hex}"), body));
        assert!(!signed(&format!("sha256={hex}"), br#"{"entry": []}"#));
        assert!(!signed(&hex, body));
        assert!(!signed(&format!("sha1={hex}"), body));
        assert!(!signed("sha256=", body));
        assert!(!signed(&format!("sha256={}", &hex[..62]), body));
        assert!(!signed(&format!("sha256={}", "g".repeat(64)), body));
        assert_eq!(signature(&HeaderMap::new()), None);
    }

    #[test]
    fn an_event_is_taken_apart_and_unknown_kinds_are_left_out() {
        let event = json!({ "object": "whatsapp_business_account", "entry": [
            { "id": "1", "changes": [
                { "field": "messages", "value": {
                    "metadata": { "phone_number_id": "42" },
                    "contacts": [
                        { "wa_id": "2", "profile": { "name": "B" } },
                        { "wa_id": "1", "profile": { "name": "A" } }
                    ],
                    "messages": [{ "id": "m1", "from": "1" }, { "id": "m2", "from": "2" }],
                    "statuses": [{ "id": "s1" }]
                }},
                { "field": "account_update", "value": { "event": "x" } },
                "nonsense"
            ]},
            { "changes": 7 }
        ]});
        let items = take_apart(&event);
        let said: Vec<(&str, &str)> = items
            .iter()
            .map(|item| {
                let payload = &item.payload;
                let name = payload.pointer("/contact/profile/name");
                (
                    payload["what"]["id"].as_str().unwrap_or_default(),
                    name.and_then(Value::as_str).unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(said, [("s1", ""), ("m1", "A"), ("m2", "B")]);
        for nothing in [
            json!(null),
            json!([]),
            json!({ "entry": {} }),
            json!({ "entry": [1] }),
        ] {
            assert!(take_apart(&nothing).is_empty());
        }
    }

    #[test]
    fn times_are_the_providers_but_never_ahead() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).expect("in range");
        let read = |value: Value| time(&value, now).timestamp();
        assert_eq!(read(json!("1699999999")), 1_699_999_999);
        assert_eq!(read(json!(1_699_999_999)), 1_699_999_999);
        for odd in [json!("1700000001"), json!("x"), json!(null), json!(-5)] {
            assert_eq!(read(odd), 1_700_000_000);
        }
    }
}
