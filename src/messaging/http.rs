//! The routes of messaging.
//!
//! They name their store in the body or in the query, so it is known only when those are read. A
//! request passes, in this order: the key of the API (401), media type (415), size (413), syntax
//! (400), fields (422), the store (404, 403), its rate (429), the database's queue (503); then what
//! it is for.

use axum::body::Body;
use axum::extract::{Request, State as Given};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode, Uri};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::channels::{self, ProviderName};
use super::idempotency::{self, Endpoint, Key, Name, Retention};
use super::input::{self, SandboxInbound, Wanted};
use super::messages::{self, Message};
use super::send::{self, Keyed, Send};
use super::templates::{self, NewTemplate, TemplateInput, Upserted};
use super::{Messaging, inbound};
use crate::auth::StoreAccess;
use crate::edge::{Holder, RequestId, WholeBody, media_type};
use crate::engine::failure::{Failure, of_read};
use crate::engine::http::{
    self as engine_http, Listed, Query, RECORD_BYTES, STORE, Service, after, guarded,
    ignoring_keys, json, read_json, segment_from_end,
};
use crate::engine::read::List;
use crate::engine::transaction::Transaction;
use crate::error::Error;
use crate::state::State;
use crate::tenancy::{self, KeyScope};
use crate::values::{Checked, Country, Faults, Node, parse};

const JSON: &[&str] = &["application/json"];
const OUTCOME: HeaderName = HeaderName::from_static("keyfold-outcome");
/// Stores that `/me` lists.
const MOST_STORES: i64 = 1_000;

/// All routes of messaging.
pub fn routes(service: &Service, messaging: Messaging) -> Router<Service> {
    let ignoring = Router::new()
        .route("/api/v1/get_templates", get(list_templates))
        .route("/api/v1/messages", get(list_messages))
        .route("/api/v1/messages/{message_id}", get(one_message))
        .route("/api/v1/me", get(me))
        .route("/api/v1/idempotency-keys", get(list_keys))
        .route(
            "/api/v1/idempotency-keys/{endpoint}/{key}",
            get(one_key).delete(forget_key),
        )
        .route_layer(from_fn(ignoring_keys));
    Router::new()
        // To everything but POST `send` is a message's id like any other.
        .route(
            "/api/v1/messages/send",
            post(send_free_form).merge(get(one_message).route_layer(from_fn(ignoring_keys))),
        )
        .route("/api/v1/templates", post(send_template))
        .merge(ignoring)
        .route(
            &format!("{STORE}/message-templates"),
            guarded(service, post(post_template)),
        )
        .route(
            &format!("{STORE}/sandbox/inbound"),
            guarded(service, post(sandbox_inbound)),
        )
        .route(
            "/webhooks/whatsapp",
            get(inbound::verify).post(inbound::receive),
        )
        .layer(Extension(messaging))
}

/// The store that a request is about, as far as it can be known before everything else is checked.
struct Target {
    /// Open to the caller, or why not.
    access: Result<StoreAccess, Error>,
    /// Whether it is named, or the only one that can be meant.
    is_known: bool,
}

impl Target {
    fn country(&self) -> Option<Country> {
        let open = self.access.as_ref().ok();
        open.and_then(|store| store.default_country)
    }
}

/// The named store, or the only one that the key can use.
async fn target(service: &Service, caller: KeyScope, named: Option<i64>) -> Result<Target, Error> {
    let only = match named.or(caller.store_id) {
        Some(store_id) => Some(store_id),
        None => {
            let stores = tenancy::stores_of(&service.state.pool, caller.team_id, 2).await;
            match stores.map_err(of_read)?.as_slice() {
                [only] => Some(only.id),
                _ => None,
            }
        }
    };
    let access = match only {
        Some(store_id) => service.gatekeeper.store(caller, store_id).await,
        None => Err(Error::StoreNotFound),
    };
    Ok(Target {
        access: access.map_err(|error| service.on_account(caller, error)),
        is_known: only.is_some(),
    })
}

/// Lets a request to an open store go on, within its rate and when there is room.
async fn admitted(
    service: &Service,
    access: Result<StoreAccess, Error>,
    work: impl AsyncFnOnce(StoreAccess) -> Result<Response, Error>,
) -> Response {
    let store = match access {
        Ok(store) => store,
        Err(error) => return error.into_response(),
    };
    let limit = service.limiter.check(store.store_id);
    let admitted = limit
        .admit()
        .and_then(|()| service.gate.check(store.holder()));
    let result = match admitted {
        Ok(()) => work(store).await,
        Err(error) => Err(error),
    };
    let mut response = result.unwrap_or_else(IntoResponse::into_response);
    limit.describe(response.headers_mut());
    response
}

/// A request that names its store in the query: who calls, what they ask, which store.
async fn asked(service: &Service, parts: &Parts, known: &[&str]) -> Result<(Query, Target), Error> {
    let caller = engine_http::caller(service, &parts.headers).await?;
    let query = Query::read(parts.uri.query(), known);
    let query = query.map_err(|error| service.on_account(caller, error))?;
    let named = query.parsed("store_id", "must be a number, 1 or more", |text| {
        engine_http::number::<i64>(text).filter(|id| *id > 0)
    });
    let named = named.map_err(|error| service.on_account(caller, error))?;
    let target = target(service, caller, named).await?;
    if !target.is_known {
        let message = "is required: the key can use several stores, or none";
        return Err(Error::Invalid(Faults::at("store_id", message)));
    }
    Ok((query, target))
}

type Reader = fn(&Node<'_>, Option<Country>, bool) -> Checked<Wanted>;

async fn send_free_form(
    Given(service): Given<Service>,
    Extension(messaging): Extension<Messaging>,
    request: Request,
) -> Result<Response, Error> {
    send(
        service,
        messaging,
        request,
        Endpoint::Send,
        input::read_send,
    )
    .await
}

async fn send_template(
    Given(service): Given<Service>,
    Extension(messaging): Extension<Messaging>,
    request: Request,
) -> Result<Response, Error> {
    let endpoint = Endpoint::Templates;
    send(service, messaging, request, endpoint, input::read_template).await
}

async fn send(
    service: Service,
    messaging: Messaging,
    request: Request,
    endpoint: Endpoint,
    read: Reader,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let caller = engine_http::caller(&service, &parts.headers).await?;
    let asked = read_send(&service, caller, &parts, body, read).await;
    // Which store it is about is known only now.
    let Asked {
        wanted,
        access,
        key,
        body_sha256,
    } = asked.map_err(|error| service.on_account(caller, error))?;
    let request_id = request_id(&service, &parts);
    let work = async |store: StoreAccess| {
        let store_id = store.store_id;
        let keyed = key.map(|key| Keyed {
            name: Name {
                store_id,
                endpoint,
                key,
            },
            body_sha256,
            id: service.state.clock.new_id(),
        });
        let send = Send {
            store_id,
            wanted,
            keyed,
            request_id,
        };
        Box::pin(send::accept(
            &service,
            &messaging.in_use,
            &messaging.hints,
            send,
        ))
        .await
    };
    Ok(admitted(&service, access, work).await)
}

/// What a send asks for.
struct Asked {
    wanted: Wanted,
    access: Result<StoreAccess, Error>,
    key: Option<Key>,
    body_sha256: [u8; 32],
}

async fn read_send(
    service: &Service,
    caller: KeyScope,
    parts: &Parts,
    body: Body,
    read: Reader,
) -> Result<Asked, Error> {
    media_type(&parts.headers, JSON, "application/json")?;
    let holder = Holder::Team(caller.team_id);
    let body = service
        .read_whole(holder, &parts.headers, body, RECORD_BYTES)
        .await?;
    Query::read(parts.uri.query(), &[])?;
    let key = Key::of(&parts.headers)?;
    let (wanted, access) = read_body(service, caller, &body, read).await?;
    let body_sha256 = Sha256::digest(&body[..]).into();
    Ok(Asked {
        wanted,
        access,
        key,
        body_sha256,
    })
}

async fn read_body(
    service: &Service,
    caller: KeyScope,
    body: &WholeBody,
    read: Reader,
) -> Result<(Wanted, Result<StoreAccess, Error>), Error> {
    // The tree is not kept over an `await`.
    let named = input::store_id(&parse(body)?);
    let target = target(service, caller, named).await?;
    let wanted = read(&parse(body)?, target.country(), target.is_known);
    Ok((wanted.map_err(Error::Invalid)?, target.access))
}

/// The edge gives every request one.
fn request_id(service: &Service, parts: &Parts) -> RequestId {
    let given = parts.extensions.get::<RequestId>().cloned();
    given.unwrap_or_else(|| RequestId::of(&parts.headers, &service.state.clock))
}

async fn list_templates(
    Given(service): Given<Service>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, target) = asked(&service, &parts, &["store_id"]).await?;
    let work = async |store: StoreAccess| {
        let work = move |state: State| async move {
            let provider = channels::provider(&state.pool, store.store_id).await;
            let provider = provider.map_err(of_read)?;
            templates::sendable(&state.pool, store.store_id, provider)
                .await
                .map_err(of_read)
        };
        json(StatusCode::OK, &service.run(store.holder(), work).await?)
    };
    Ok(admitted(&service, target.access, work).await)
}

async fn list_messages(
    Given(service): Given<Service>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (query, target) = asked(&service, &parts, &["store_id", "limit", "cursor"]).await?;
    let limit = query.limit()?;
    let work = async |store: StoreAccess| {
        let store_id = store.store_id;
        let list = list_of(store_id, messages::PATH);
        let after = after(&query, &list)?;
        let work = move |state: State| async move {
            messages::page(&state.pool, store_id, after, i64::from(limit) + 1)
                .await
                .map_err(of_read)
        };
        let found = service.run(Holder::Store(store_id), work).await?;
        let page = Listed::of(found, limit, &list, |message: &Message| message.message_id);
        json(StatusCode::OK, &page)
    };
    Ok(admitted(&service, target.access, work).await)
}

fn list_of(store_id: i64, path: &'static str) -> List<'static> {
    List {
        store_id,
        path,
        filters: "",
    }
}

async fn one_message(Given(service): Given<Service>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, target) = asked(&service, &parts, &["store_id"]).await?;
    let segment = segment_from_end(parts.uri.path(), 0)?;
    let work = async |store: StoreAccess| {
        let id: Uuid = segment.parse().map_err(|_| Error::NotFound)?;
        let work = move |state: State| async move {
            let found = messages::one(&state.pool, store.store_id, id).await;
            found.map_err(of_read)?.ok_or(Error::NotFound)
        };
        json(StatusCode::OK, &service.run(store.holder(), work).await?)
    };
    Ok(admitted(&service, target.access, work).await)
}

/// Who a key belongs to, and what it may do.
#[derive(Debug, Serialize, ToSchema)]
pub struct Me {
    /// Whose the key is.
    pub team: MyTeam,
    /// The key that was sent, without itself.
    pub key: MyKey,
    /// The stores that it may use, oldest first; at most 1,000 of them.
    pub stores: Vec<MyStore>,
    /// What is counted.
    pub limits: MyLimits,
}

/// A team.
#[derive(Debug, Serialize, ToSchema)]
pub struct MyTeam {
    /// As `keyfold team list` shows it.
    pub id: i64,
    /// For people.
    pub name: String,
}

/// A key.
#[derive(Debug, Serialize, ToSchema)]
pub struct MyKey {
    /// As `keyfold key list` shows it.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// The one store that it may use; null: all of the team.
    pub store_id: Option<i64>,
}

/// A store.
#[derive(Debug, Serialize, ToSchema)]
pub struct MyStore {
    /// What stands in the path of a request.
    pub id: i64,
    /// For people.
    pub name: String,
    /// The merchant's own name for it.
    pub external_id: Option<String>,
    /// How national spellings of phone numbers are read.
    pub default_country: Option<String>,
    /// `active`, or `paused`: it answers 404.
    #[schema(example = "active")]
    pub status: String,
}

/// Limits that are counted.
#[derive(Debug, Serialize, ToSchema)]
pub struct MyLimits {
    /// Requests a minute for each store; 0: not limited.
    pub rate_limit_per_minute: u32,
    /// For how many hours an `Idempotency-Key` counts.
    pub idempotency_retention_hours: u32,
    /// For how many days events are kept.
    pub event_retention_days: u32,
}

async fn me(Given(service): Given<Service>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let caller = engine_http::caller(&service, &parts.headers).await?;
    Query::read(parts.uri.query(), &[])?;
    service.limiter.charge_key(caller.key_id)?;
    service.gate.check(Holder::Team(caller.team_id))?;
    let work = move |state: State| async move {
        let pool = &state.pool;
        let team = tenancy::find_team(pool, caller.team_id).await?;
        let name = tenancy::key_name(pool, caller.key_id).await?;
        let stores = match caller.store_id {
            Some(only) => tenancy::find_stores(pool, &[only]).await?,
            None => tenancy::stores_of(pool, caller.team_id, MOST_STORES).await?,
        };
        Ok::<_, sqlx::Error>((team, name, stores))
    };
    let work = move |state: State| async move { work(state).await.map_err(of_read) };
    let (team, name, stores) = service.run(Holder::Team(caller.team_id), work).await?;
    let team = team.ok_or(Error::Unauthorized)?;
    let config = &service.state.config;
    let me = Me {
        team: MyTeam {
            id: team.id,
            name: team.name,
        },
        key: MyKey {
            id: caller.key_id,
            name: name.unwrap_or_default(),
            store_id: caller.store_id,
        },
        stores: stores
            .into_iter()
            .map(|store| MyStore {
                id: store.id,
                name: store.name,
                external_id: store.external_id,
                default_country: store.default_country,
                status: store.status,
            })
            .collect(),
        limits: MyLimits {
            rate_limit_per_minute: config.rate_limit_per_minute,
            idempotency_retention_hours: config.idempotency_retention_hours,
            event_retention_days: config.event_retention_days,
        },
    };
    json(StatusCode::OK, &me)
}

async fn list_keys(Given(service): Given<Service>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (query, target) = asked(&service, &parts, &["store_id", "limit", "cursor"]).await?;
    let limit = query.limit()?;
    let work = async |store: StoreAccess| {
        let store_id = store.store_id;
        let list = list_of(store_id, "idempotency-keys");
        let after = after(&query, &list)?;
        let work = move |state: State| async move {
            let times = Retention::of(&state);
            idempotency::page(&state.pool, store_id, after, i64::from(limit) + 1, times)
                .await
                .map_err(of_read)
        };
        let found = service.run(Holder::Store(store_id), work).await?;
        json(
            StatusCode::OK,
            &Listed::of(found, limit, &list, |entry| entry.id),
        )
    };
    Ok(admitted(&service, target.access, work).await)
}

/// The key that a path names; none: no such key can be.
fn named_key(uri: &Uri, store_id: i64) -> Result<Option<Name>, Error> {
    let endpoint = Endpoint::parse(&segment_from_end(uri.path(), 1)?);
    let key = Key::parse(&segment_from_end(uri.path(), 0)?);
    Ok(endpoint.zip(key).map(|(endpoint, key)| Name {
        store_id,
        endpoint,
        key,
    }))
}

async fn one_key(Given(service): Given<Service>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, target) = asked(&service, &parts, &["store_id"]).await?;
    let work = async |store: StoreAccess| {
        let name = named_key(&parts.uri, store.store_id)?.ok_or(Error::NotFound)?;
        let work = move |state: State| async move {
            let times = Retention::of(&state);
            let found = idempotency::one(&state.pool, &name, times).await;
            found.map_err(of_read)?.ok_or(Error::NotFound)
        };
        json(StatusCode::OK, &service.run(store.holder(), work).await?)
    };
    Ok(admitted(&service, target.access, work).await)
}

async fn forget_key(
    Given(service): Given<Service>,
    Extension(messaging): Extension<Messaging>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, target) = asked(&service, &parts, &["store_id"]).await?;
    let work = async |store: StoreAccess| {
        let name = named_key(&parts.uri, store.store_id)?.ok_or(Error::NotFound)?;
        if messaging.in_use.is_taken(&name) {
            return Err(Error::IdempotencyKeyInUse);
        }
        service
            .run(store.holder(), |state: State| async move {
                forget(&state, &name).await
            })
            .await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    Ok(admitted(&service, target.access, work).await)
}

async fn forget(state: &State, name: &Name) -> Result<(), Error> {
    let mut transaction = Transaction::begin_impatiently(&state.pool)
        .await
        .map_err(of_read)?;
    let (id, times) = (state.clock.new_id(), Retention::of(state));
    match idempotency::forget(transaction.connection(), name, id, times).await {
        Ok(true) => transaction
            .commit()
            .await
            .map_err(|error| Failure::of_commit(error).into_error()),
        Ok(false) => {
            transaction.rollback().await;
            Err(Error::NotFound)
        }
        Err(error) => {
            transaction.rollback().await;
            Err(match Failure::from(error) {
                Failure::Busy(_) => Error::IdempotencyKeyInUse,
                failure => failure.into_error(),
            })
        }
    }
}

async fn post_template(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let body = read_json(&service, request).await?;
    let input = TemplateInput::read(&parse(&body)?).map_err(Error::Invalid)?;
    drop(body);
    let work =
        move |state: State| async move { upsert_template(&state, store.store_id, input).await };
    let (template, upserted) = service.run(store.holder(), work).await?;
    let (status, outcome) = match upserted {
        Upserted::Created => (StatusCode::CREATED, "created"),
        Upserted::Updated => (StatusCode::OK, "updated"),
        Upserted::Unchanged => (StatusCode::OK, "unchanged"),
    };
    let mut response = json(status, &template)?;
    response
        .headers_mut()
        .insert(OUTCOME, HeaderValue::from_static(outcome));
    Ok(response)
}

async fn upsert_template(
    state: &State,
    store_id: i64,
    input: TemplateInput,
) -> Result<(templates::Template, Upserted), Error> {
    let new = NewTemplate {
        name: input.name,
        language: input.language,
        status: "approved".to_owned(),
        header: input.header,
        body: input.body,
        footer: input.footer,
        buttons: input.buttons.as_str().to_owned(),
        variables: input.variables,
        slots: None,
    };
    let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
    let connection = transaction.connection();
    let sandbox = ProviderName::Sandbox;
    let written = async {
        if channels::provider(&mut *connection, store_id).await? != sandbox {
            return Ok(Err(Error::TemplatesFromProvider));
        }
        let now = state.clock.now();
        let written = templates::upsert(connection, store_id, sandbox, &new, now).await?;
        let count = templates::count(&mut *connection, store_id, sandbox).await?;
        let most = i64::try_from(templates::MOST_TEMPLATES).unwrap_or(i64::MAX);
        if written.1 == Upserted::Created && count > most {
            let message = format!("a store can have at most {most} templates");
            return Ok(Err(Error::Invalid(Faults::at("name", message))));
        }
        Ok::<_, sqlx::Error>(Ok(written))
    }
    .await;
    transaction.conclude(written).await
}

async fn sandbox_inbound(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let body = read_json(&service, request).await?;
    let input = SandboxInbound::read(&parse(&body)?, store.default_country);
    let input = input.map_err(Error::Invalid)?;
    drop(body);
    let work = move |state: State| async move {
        inbound::from_sandbox(&state, store.store_id, &input).await
    };
    service.run(store.holder(), work).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
