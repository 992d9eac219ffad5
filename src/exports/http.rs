//! The routes of exports.

use axum::extract::{Request, State as Given};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use super::definitions::{self, Export, Stored, Which};
use super::input::Wanted;
use super::names::name;
use super::pages::Page;
use super::results::{self, OUTCOMES};
use super::runs::{self, Begun, Run};
use super::save::{self, Saved};
use super::{Exports, deliveries, log};
use crate::auth::StoreAccess;
use crate::edge::{Holder, media_type};
use crate::engine::failure::of_read;
use crate::engine::http::{
    Listed, Query, RECORD_BYTES, STORE, Service, after, guarded, json, location, read_json,
    segment_from_end, upserted,
};
use crate::engine::read::List;
use crate::engine::transaction::Transaction;
use crate::error::Error;
use crate::resources::catalog;
use crate::state::State;
use crate::values::{Faults, Fields, parse};

/// The segment of exports in paths.
const PATH: &str = "exports";
const JSON: &[&str] = &["application/json"];
/// States of deliveries that are shown.
pub const STATES: &[&str] = &["waiting", "dead"];

/// All routes of exports.
pub fn routes(service: &Service, exports: Exports) -> Router<Service> {
    let one = format!("{STORE}/{PATH}/{{external_id}}");
    let route = |rest: &str, methods| (format!("{one}{rest}"), guarded(service, methods));
    let routes = [
        (
            format!("{STORE}/{PATH}"),
            guarded(service, get(list).post(post_one)),
        ),
        route("", get(get_one).delete(delete_one)),
        route("/runs", get(list_runs).post(begin_run)),
        route("/runs/{run_id}", get(get_run)),
        route("/runs/{run_id}/results", get(list_results)),
        route("/runs/{run_id}/retry", post(retry_run)),
        route("/log", get(list_log).delete(forget_many)),
        route("/log/{key}", delete(forget_one)),
        route("/deliveries", get(list_deliveries)),
    ];
    let router = routes
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(&path, methods)
        });
    router.layer(Extension(exports))
}

/// The export that a path names, counted from its end.
async fn named(
    service: &Service,
    store: &StoreAccess,
    path: &str,
    place: usize,
) -> Result<Stored, Error> {
    let external_id = segment_from_end(path, place)?;
    let store_id = store.store_id;
    let work = move |state: State| async move {
        definitions::named(&state.pool, store_id, &external_id)
            .await
            .map_err(of_read)?
    };
    service.run(Holder::Store(store_id), work).await
}

async fn post_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    Extension(exports): Extension<Exports>,
    request: Request,
) -> Result<Response, Error> {
    let body = read_json(&service, request).await?;
    let wanted = Wanted::read(&parse(&body)?, &exports.guard).map_err(Error::Invalid)?;
    drop(body);
    let sample = wanted.settings.destination.sample();
    let sample = sample.map_err(Error::internal)?;
    let judged = exports.guard.check_now(store.store_id, &sample).await;
    judged.map_err(|refused| Error::Invalid(Faults::at("url", refused.to_string())))?;
    let store_id = store.store_id;
    let work = move |state: State| async move {
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let connection = transaction.connection();
        let saved = save::save(&state, connection, store_id, &wanted).await;
        transaction.conclude(saved).await
    };
    let Saved {
        export,
        outcome,
        woken,
    } = service.run(Holder::Store(store_id), work).await?;
    if woken {
        exports.hints.give(store_id, export.id);
    }
    let path = location(store_id, PATH, &export.external_id);
    upserted(outcome, &export, &path)
}

async fn get_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    segment_from_end(path, 0)?;
    Query::read(request.uri().query(), &[])?;
    let export = named(&service, &store, path, 0).await?;
    json(StatusCode::OK, &export.into_answer())
}

async fn delete_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let external_id = segment_from_end(request.uri().path(), 0)?;
    Query::read(request.uri().query(), &[])?;
    let store_id = store.store_id;
    let work = move |state: State| async move {
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let (connection, now) = (transaction.connection(), state.clock.now());
        let deleted = save::delete(connection, store_id, &external_id, now).await;
        transaction.conclude(deleted).await
    };
    service.run(Holder::Store(store_id), work).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Which page of a list is asked for.
struct Asked<'a> {
    list: List<'a>,
    after: Uuid,
    limit: u32,
}

impl Asked<'_> {
    /// One entry more tells whether there is another page.
    fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }
}

fn asked<'a>(
    query: &Query,
    store: &StoreAccess,
    path: &'a str,
    filters: &'a str,
) -> Result<Asked<'a>, Error> {
    let limit = query.limit()?;
    let list = List {
        store_id: store.store_id,
        path,
        filters,
    };
    Ok(Asked {
        after: after(query, &list)?,
        list,
        limit,
    })
}

async fn list(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let query = Query::read(request.uri().query(), &["limit", "cursor"])?;
    let asked = asked(&query, &store, PATH, "")?;
    let (store_id, which) = (store.store_id, Which::After(asked.after, asked.rows()));
    let work = move |state: State| async move {
        let found = definitions::find(&state.pool, store_id, which).await;
        found.map_err(of_read)
    };
    let found = service.run(Holder::Store(store_id), work).await?;
    let found: Vec<Export> = found.into_iter().map(Stored::into_answer).collect();
    let page = Listed::of(found, asked.limit, &asked.list, |export| export.id);
    json(StatusCode::OK, &page)
}

/// A run's id in a path; what is none names no run.
fn run_id(path: &str, place: usize) -> Result<Result<Uuid, Error>, Error> {
    let segment = segment_from_end(path, place)?;
    Ok(segment.parse().map_err(|_| Error::NotFound))
}

async fn begin_run(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    Extension(exports): Extension<Exports>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path().to_owned();
    read_nothing(&service, request).await?;
    let export = named(&service, &store, &path, 1).await?;
    let (id, external_id) = (export.id, export.external_id.clone());
    let work = move |state: State| async move {
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let begun = runs::begin(&state, transaction.connection(), &export).await;
        transaction.conclude(begun).await
    };
    match service.run(store.holder(), work).await? {
        Begun::Running(run) => json(StatusCode::OK, &run),
        Begun::New(run) => {
            exports.hints.give(store.store_id, id);
            accepted(store.store_id, &external_id, &run)
        }
    }
}

async fn retry_run(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    Extension(exports): Extension<Exports>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path().to_owned();
    read_nothing(&service, request).await?;
    let run_id = run_id(&path, 1)?;
    let export = named(&service, &store, &path, 3).await?;
    let (id, external_id, run_id) = (export.id, export.external_id.clone(), run_id?);
    let work = move |state: State| async move {
        let mut transaction = Transaction::begin(&state.pool).await.map_err(of_read)?;
        let begun = runs::retry(&state, transaction.connection(), &export, run_id).await;
        transaction.conclude(begun).await
    };
    let run = service.run(store.holder(), work).await?;
    exports.hints.give(store.store_id, id);
    accepted(store.store_id, &external_id, &run)
}

fn accepted(store_id: i64, external_id: &str, run: &Run) -> Result<Response, Error> {
    let mut response = json(StatusCode::ACCEPTED, run)?;
    let path = location(store_id, PATH, external_id);
    let path = format!("{path}/runs/{}", run.run_id);
    let path = HeaderValue::try_from(path).map_err(Error::internal)?;
    response.headers_mut().insert(header::LOCATION, path);
    Ok(response)
}

/// A request that needs no body; an empty object is none.
async fn read_nothing(service: &Service, request: Request) -> Result<(), Error> {
    let (parts, body) = request.into_parts();
    let typed = media_type(&parts.headers, JSON, "application/json");
    let store = parts.extensions.get::<StoreAccess>();
    let holder = store.map_or(Holder::Nobody, StoreAccess::holder);
    let body = service
        .read_whole(holder, &parts.headers, body, RECORD_BYTES)
        .await;
    if matches!(body, Err(Error::BodyTooLarge { .. })) && typed.is_err() {
        // That it is of the wrong type comes first.
        return typed.map(|_| ());
    }
    let body = body?;
    Query::read(parts.uri.query(), &[])?;
    if body.is_empty() {
        return Ok(());
    }
    typed?;
    let node = parse(&body)?;
    let finished = Fields::of(&node).and_then(Fields::finish);
    finished.map_err(Error::Invalid)
}

async fn list_runs(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let query = Query::read(request.uri().query(), &["limit", "cursor"])?;
    let filters = segment_from_end(path, 1)?;
    let asked = asked(&query, &store, "exports/runs", &filters)?;
    let export = named(&service, &store, path, 1).await?;
    let which = runs::Which::After(asked.after, asked.rows());
    let work = move |state: State| async move {
        let found = runs::find(&state.pool, export.store_id, export.id, which).await;
        found.map_err(of_read)
    };
    let found = service.run(store.holder(), work).await?;
    let page = Listed::of(found, asked.limit, &asked.list, |run| run.run_id);
    json(StatusCode::OK, &page)
}

async fn get_run(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let run_id = run_id(path, 0)?;
    Query::read(request.uri().query(), &[])?;
    let export = named(&service, &store, path, 2).await?;
    let run = run_of(&service, &export, run_id?).await?;
    json(StatusCode::OK, &run)
}

async fn run_of(service: &Service, export: &Stored, run_id: Uuid) -> Result<Run, Error> {
    let (store_id, export_id) = (export.store_id, export.id);
    let work = move |state: State| async move {
        runs::one(&state.pool, store_id, export_id, run_id)
            .await
            .map_err(of_read)?
    };
    service.run(Holder::Store(store_id), work).await
}

/// One of these words in a query.
fn word(
    query: &Query,
    name: &str,
    words: &'static [&'static str],
) -> Result<Option<&'static str>, Error> {
    let wanted = format!("must be one of {}", words.join(", "));
    query.parsed(name, &wanted, |text| {
        words.iter().find(|word| **word == text).copied()
    })
}

async fn list_results(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let run_id = run_id(path, 1)?;
    let query = Query::read(request.uri().query(), &["outcome", "limit", "cursor"])?;
    let outcome = word(&query, "outcome", OUTCOMES)?;
    let filters = format!("{run_id:?}&{outcome:?}");
    let asked = asked(&query, &store, "exports/results", &filters)?;
    let export = named(&service, &store, path, 3).await?;
    let run = run_of(&service, &export, run_id?).await?;
    let (store_id, after, limit) = (export.store_id, asked.after, i64::from(asked.limit));
    let run = runs::Locked {
        id: run.run_id,
        attempt: run.attempt,
    };
    let names = service.names.clone();
    let work = move |state: State| async move {
        let mut connection = state.pool.acquire().await.map_err(of_read)?;
        let found = results::page(&mut connection, store_id, run, outcome, after, limit).await;
        let mut found = found.map_err(of_read)?;
        name(&mut connection, store_id, &names, &mut found.rows)
            .await
            .map_err(of_read)?;
        Ok(found)
    };
    let Page { rows, next_after } = service.run(Holder::Store(store_id), work).await?;
    json(
        StatusCode::OK,
        &Listed::until(rows, next_after, &asked.list),
    )
}

async fn list_log(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let query = Query::read(request.uri().query(), &["limit", "cursor"])?;
    let filters = segment_from_end(path, 1)?;
    let asked = asked(&query, &store, "exports/log", &filters)?;
    let export = named(&service, &store, path, 1).await?;
    let (after, limit) = (asked.after, i64::from(asked.limit));
    let names = service.names.clone();
    let work = move |state: State| async move {
        let mut connection = state.pool.acquire().await.map_err(of_read)?;
        let now = state.clock.now();
        let found = log::page(&mut connection, &export, None, after, limit, now).await;
        let mut found = found.map_err(of_read)?;
        name(&mut connection, export.store_id, &names, &mut found.rows)
            .await
            .map_err(of_read)?;
        Ok(found)
    };
    let Page { rows, next_after } = service.run(store.holder(), work).await?;
    json(
        StatusCode::OK,
        &Listed::until(rows, next_after, &asked.list),
    )
}

async fn forget_one(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let key = segment_from_end(path, 0)?;
    Query::read(request.uri().query(), &[])?;
    let export = named(&service, &store, path, 2).await?;
    if key.contains('\0') {
        return Err(Error::NotFound);
    }
    let work = move |state: State| async move {
        let forgotten = log::forget_key(&state.pool, export.store_id, export.id, &key).await;
        forgotten.map_err(of_read)
    };
    if service.run(store.holder(), work).await? {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Error::NotFound)
    }
}

async fn forget_many(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let query = Query::read(request.uri().query(), &["resource", "external_id"])?;
    let resource = query.parsed("resource", "must be the path of a resource", catalog::entry)?;
    let Some(resource) = resource else {
        return Err(Error::QueryInvalid(Faults::at("resource", "is required")));
    };
    let external_id = query.text("external_id").map(str::to_owned);
    let export = named(&service, &store, path, 1).await?;
    let work = move |state: State| async move {
        log::forget(&state, &export, Some(resource), external_id.as_deref())
            .await
            .map_err(of_read)
    };
    service.run(store.holder(), work).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list_deliveries(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let query = Query::read(request.uri().query(), &["state", "limit", "cursor"])?;
    let wanted = word(&query, "state", STATES)?;
    let filters = format!("{}&{wanted:?}", segment_from_end(path, 1)?);
    let asked = asked(&query, &store, "exports/deliveries", &filters)?;
    let export = named(&service, &store, path, 1).await?;
    let (store_id, after, limit) = (export.store_id, asked.after, i64::from(asked.limit));
    let names = service.names.clone();
    let work = move |state: State| async move {
        let mut connection = state.pool.acquire().await.map_err(of_read)?;
        let found =
            deliveries::page(&mut connection, store_id, export.id, wanted, after, limit).await;
        let mut found = found.map_err(of_read)?;
        name(&mut connection, store_id, &names, &mut found.rows)
            .await
            .map_err(of_read)?;
        Ok(found)
    };
    let Page { rows, next_after } = service.run(Holder::Store(store_id), work).await?;
    json(
        StatusCode::OK,
        &Listed::until(rows, next_after, &asked.list),
    )
}
