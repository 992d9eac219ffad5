//! The routes of automations.

use axum::extract::{Request, State as Given};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::StatusCode;
use uuid::Uuid;

use super::input::AutomationInput;
use super::rules::{self, PATH, Rule};
use super::runs::{self, Of};
use super::webhook::{self, CallInput};
use crate::auth::StoreAccess;
use crate::edge::Holder;
use crate::engine::failure::of_read;
use crate::engine::http::{
    self as engine_http, Listed, Query, STORE, Service, after, guarded, ignoring_keys, json,
    last_segment, read_json, segment_from_end, upserted,
};
use crate::engine::read::List;
use crate::engine::transaction::Transaction;
use crate::error::Error;
use crate::outbox::Hints;
use crate::resources::catalog;
use crate::state::State;
use crate::values::parse;

/// All routes of automations.
pub fn routes(service: &Service, hints: Hints) -> Router<Service> {
    let mut router = Router::new()
        .route(
            &format!("{STORE}/{PATH}"),
            guarded(service, get(list).post(post_one)),
        )
        .route(
            &format!("{STORE}/{PATH}/{{external_id}}"),
            guarded(service, get(get_one).delete(delete_one)),
        )
        .route(
            &format!("{STORE}/{PATH}/{{external_id}}/runs"),
            guarded(service, get(runs_of_automation)),
        )
        .route(
            "/api/v1/automations/{webhook_id}",
            post(call).route_layer(from_fn(ignoring_keys)),
        );
    for entry in catalog::ALL.iter() {
        let path = format!("{STORE}/{}/{{external_id}}/runs", entry.path);
        router = router.route(&path, guarded(service, get(runs_of_record)));
        // A record may be called `bulk` too.
        let path = format!("{STORE}/{}/bulk/runs", entry.path);
        router = router.route(&path, guarded(service, get(runs_of_record)));
    }
    router.layer(Extension(hints))
}

async fn post_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let body = read_json(&service, request).await?;
    let input = AutomationInput::read(&parse(&body)?).map_err(Error::Invalid)?;
    drop(body);
    let store_id = store.store_id;
    let work = move |state: State| async move {
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let connection = transaction.connection();
        let result = rules::upsert(&state, connection, store_id, input).await;
        transaction.conclude(result).await
    };
    let (rule, outcome) = service.run(Holder::Store(store_id), work).await?;
    let location = engine_http::location(store_id, PATH, &rule.external_id);
    upserted(outcome, &rule.answer(store_id), &location)
}

async fn list(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let query = Query::read(request.uri().query(), &["limit", "cursor"])?;
    let limit = query.limit()?;
    let store_id = store.store_id;
    let list = List {
        store_id,
        path: PATH,
        filters: "",
    };
    let after = after(&query, &list)?;
    let work = move |state: State| async move {
        let found = rules::page(&state.pool, store_id, after, i64::from(limit) + 1).await;
        found.map_err(of_read)
    };
    let found = service.run(Holder::Store(store_id), work).await?;
    let answers = found
        .into_iter()
        .map(|rule| rule.answer(store_id))
        .collect();
    json(
        StatusCode::OK,
        &Listed::of(answers, limit, &list, |automation| automation.id),
    )
}

async fn get_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let external_id = last_segment(request.uri().path())?;
    Query::read(request.uri().query(), &[])?;
    let store_id = store.store_id;
    let work = move |state: State| async move { found(&state, store_id, &external_id).await };
    json(
        StatusCode::OK,
        &service
            .run(Holder::Store(store_id), work)
            .await?
            .answer(store_id),
    )
}

async fn found(state: &State, store_id: i64, external_id: &str) -> Result<Rule, Error> {
    // No name has it, and Postgres can't be asked.
    if external_id.contains('\0') {
        return Err(Error::NotFound);
    }
    let found = rules::one(&state.pool, store_id, external_id).await;
    found.map_err(of_read)?.ok_or(Error::NotFound)
}

async fn delete_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let external_id = last_segment(request.uri().path())?;
    Query::read(request.uri().query(), &[])?;
    let store_id = store.store_id;
    let work = move |state: State| async move {
        found(&state, store_id, &external_id).await?;
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let deleted = rules::delete(transaction.connection(), store_id, &external_id).await;
        let deleted = deleted.map(|was_there| was_there.then_some(()).ok_or(Error::NotFound));
        transaction.conclude(deleted).await
    };
    service.run(Holder::Store(store_id), work).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

const STATUSES: &[&str] = &["scheduled", "sent", "skipped", "failed"];

/// Which page of a list of runs is asked for.
struct Asked {
    status: Option<String>,
    limit: u32,
    query: Query,
}

impl Asked {
    fn read(request: &Request) -> Result<Self, Error> {
        let query = Query::read(request.uri().query(), &["status", "limit", "cursor"])?;
        let wanted = "must be scheduled, sent, skipped or failed";
        let status = query.parsed("status", wanted, |text| {
            STATUSES.contains(&text).then(|| text.to_owned())
        })?;
        let limit = query.limit()?;
        Ok(Self {
            status,
            limit,
            query,
        })
    }
}

async fn runs_of_automation(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let external_id = segment_from_end(request.uri().path(), 1)?;
    let asked = Asked::read(&request)?;
    let store_id = store.store_id;
    let name = external_id.clone();
    let work = move |state: State| async move {
        Ok(Of::Automation(found(&state, store_id, &name).await?.id))
    };
    let of = service.run(Holder::Store(store_id), work).await?;
    let path = format!("{PATH}/{external_id}/runs");
    page(&service, store_id, asked, &path, of).await
}

async fn runs_of_record(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path().to_owned();
    let segment = segment_from_end(&path, 1)?;
    let resource = segment_from_end(&path, 2)?;
    let asked = Asked::read(&request)?;
    let store_id = store.store_id;
    let work = move |state: State| async move {
        let entry = catalog::entry(&resource).ok_or(Error::NotFound)?;
        let mut connection = state.pool.acquire().await.map_err(of_read)?;
        let id = entry.find(&mut connection, store_id, &segment).await;
        Ok(Of::Record(id.map_err(of_read)?.ok_or(Error::NotFound)?))
    };
    let of = service.run(Holder::Store(store_id), work).await?;
    page(&service, store_id, asked, &path, of).await
}

/// A page of runs.
async fn page(
    service: &Service,
    store_id: i64,
    asked: Asked,
    path: &str,
    of: Of,
) -> Result<Response, Error> {
    let Asked {
        status,
        limit,
        query,
    } = asked;
    let filters = format!("status={status:?}");
    let list = List {
        store_id,
        path,
        filters: &filters,
    };
    let after = after(&query, &list)?;
    let work = move |state: State| async move {
        let mut connection = state.pool.acquire().await.map_err(of_read)?;
        let (status, limit) = (status.as_deref(), i64::from(limit));
        let found = runs::page(&mut connection, store_id, of, status, after, limit).await;
        found.map_err(of_read)
    };
    let found = service.run(Holder::Store(store_id), work).await?;
    json(
        StatusCode::OK,
        &Listed::until(found.runs, found.next_after, &list),
    )
}

/// A call of a webhook. Its path names no store: that is looked up, and unknown to whoever may not
/// use it.
async fn call(
    Given(service): Given<Service>,
    Extension(hints): Extension<Hints>,
    request: Request,
) -> Result<Response, Error> {
    let caller = engine_http::caller(&service, request.headers()).await?;
    let segment = last_segment(request.uri().path())?;
    let unknown = |error| service.on_account(caller, error);
    let webhook_id = segment.parse();
    let webhook_id: Uuid = webhook_id.map_err(|_| unknown(Error::NotFound))?;
    let work = move |state: State| async move {
        let found = rules::of_webhook(&state.pool, webhook_id).await;
        found.map_err(of_read)?.ok_or(Error::NotFound)
    };
    let found = service.run(Holder::Team(caller.team_id), work).await;
    let (store_id, automation_id) = found.map_err(unknown)?;
    let store = service.gatekeeper.store(caller, store_id).await;
    let store = store.map_err(|error| {
        unknown(match error {
            Error::StoreForbidden => Error::NotFound,
            error => error,
        })
    })?;
    let limit = service.limiter.check(store_id);
    let work = async {
        limit
            .admit()
            .and_then(|()| service.gate.check(Holder::Store(store_id)))?;
        let body = read_json(&service, request).await?;
        let input = CallInput::read(&parse(&body)?, store.default_country);
        let input = input.map_err(Error::Invalid)?;
        drop(body);
        let called = (webhook_id, automation_id);
        let work = move |state: State| async move {
            let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
            let connection = transaction.connection();
            let result = webhook::call(&state, connection, store_id, called, input).await;
            transaction.conclude(result).await
        };
        let (called, new) = service.run(Holder::Store(store_id), work).await?;
        if let Some(run_id) = new {
            hints.give(store_id, run_id);
        }
        json(StatusCode::OK, &called)
    };
    let mut response = work.await.unwrap_or_else(IntoResponse::into_response);
    limit.describe(response.headers_mut());
    Ok(response)
}
