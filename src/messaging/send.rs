//! Accepting a send: one transaction with the claim of its key, the message, its event, its place in
//! the outbox, and the answer.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use metrics::counter;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::channels;
use super::contacts::{self, Known};
use super::deliver;
use super::idempotency::{self, Answer, Claim, InUse, Name, Retention, Times, Turn};
use super::input::{Wanted, What};
use super::messages::{self, Content, NewMessage};
use super::status::Status;
use super::templates;
use super::variables;
use crate::database::Connection;
use crate::edge::{Holder, RequestId};
use crate::engine::failure::{Failure, of_read};
use crate::engine::http::Service;
use crate::engine::transaction::Transaction;
use crate::error::{Error, PROBLEM_JSON};
use crate::outbox::{self, Hints};
use crate::state::State;

/// How long a request waits for another one with its key.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a key that another process has is left alone before it is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Attempts after the database lost or undid one.
const MOST_ATTEMPTS: u32 = 5;

/// A send that was read, and whose store is open to the caller.
#[derive(Clone, Debug)]
pub struct Send {
    /// Whose it is.
    pub store_id: i64,
    /// What is to be sent.
    pub wanted: Wanted,
    /// The key that makes it safe to repeat.
    pub keyed: Option<Keyed>,
    /// Stands in the problem that a refusal is answered with.
    pub request_id: RequestId,
}

/// A key and the body that came with it.
#[derive(Clone, Debug)]
pub struct Keyed {
    /// The key.
    pub name: Name,
    /// Of the body's bytes as they came.
    pub body_sha256: [u8; 32],
    /// What this request claims the key under, in all its attempts.
    pub id: Uuid,
}

/// The answer to an accepted send.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// For `GET /messages/{message_id}`.
    pub message_id: Uuid,
    /// `queued`: a worker hands it to the provider.
    pub status: Status,
    /// Whose it is.
    pub store_id: i64,
    /// To which number, as E.164; null in a replay once the person has been erased.
    #[schema(value_type = Option<String>, example = "+33612345678")]
    pub to: String,
    /// To whom; null in a replay once the person has been erased.
    #[schema(value_type = Option<Uuid>)]
    pub contact_id: Uuid,
    /// When it was accepted.
    pub created_at: chrono::DateTime<chrono::Utc>,
}

/// What an attempt came to.
enum Attempt {
    /// An answer, and the message that is to be handed over now.
    Answered(Answer, Times, Option<Uuid>),
    /// Another transaction has the key.
    InUse,
    /// The database undid it, or nobody knows: it is tried again, where that is safe.
    Again(Failure),
}

/// Accepts a send, or repeats the answer that was given before.
///
/// # Errors
/// What was refused before an execution began, and what the database makes of it.
pub async fn accept(
    service: &Service,
    in_use: &InUse,
    hints: &Hints,
    send: Send,
) -> Result<Response, Error> {
    let deadline = Instant::now() + PATIENCE;
    let turn = match &send.keyed {
        Some(keyed) => Some(Arc::new(counted(in_use.wait(&keyed.name, deadline).await)?)),
        None => None,
    };
    let store_id = send.store_id;
    let (send, replays_faults) = (Arc::new(send), service.state.config.idempotency_replay_5xx);
    let message_id = service.state.clock.new_id();
    let (mut attempts, mut commit_lost) = (0, false);
    loop {
        let work = attempt_of(Arc::clone(&send), message_id, turn.clone());
        let attempt = service.run(Holder::Store(store_id), work).await;
        match attempt {
            Ok(Attempt::Answered(answer, times, queued)) => {
                if let Some(id) = queued {
                    hints.give(store_id, id);
                }
                return answer.into_response(times);
            }
            Ok(Attempt::InUse) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            Ok(Attempt::InUse) => return counted(Err(Error::IdempotencyKeyInUse)),
            Ok(Attempt::Again(failure)) => {
                attempts += 1;
                commit_lost |= matches!(failure, Failure::CommitLost(_));
                if attempts == MOST_ATTEMPTS {
                    let error = given_up(failure, send.keyed.is_some());
                    return Err(if commit_lost { unknown(error) } else { error });
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) if commit_lost => return Err(unknown(error)),
            Err(Error::Internal(cause)) if replays_faults && send.keyed.is_some() => {
                let work = save_fault(Arc::clone(&send), Error::Internal(cause), turn.clone());
                let (answer, times) = service.run(Holder::Store(store_id), work).await?;
                return answer.into_response(times);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Counts a refusal because the key is in use.
fn counted<T>(result: Result<T, Error>) -> Result<T, Error> {
    if matches!(result, Err(Error::IdempotencyKeyInUse)) {
        count("in_use");
    }
    result
}

fn count(outcome: &'static str) {
    counter!("keyfold_idempotency_total", "outcome" => outcome).increment(1);
}

fn given_up(failure: Failure, is_keyed: bool) -> Error {
    match failure {
        Failure::CommitLost(error) if !is_keyed => Error::SendUnknown(error.into()),
        failure => failure.into_error(),
    }
}

/// What a failed attempt means when the commit of an earlier one got no answer. Whatever was read
/// under the claim, a mismatch for one, proves that the earlier one was not done.
fn unknown(error: Error) -> Error {
    match error {
        Error::DatabaseUnavailable(cause) | Error::Internal(cause) => Error::OutcomeUnknown(cause),
        Error::Overloaded => Error::OutcomeUnknown("too busy to look".into()),
        error => error,
    }
}

type Working<T> = std::pin::Pin<Box<dyn Future<Output = Result<T, Error>> + std::marker::Send>>;

/// One attempt, as a task that no hang-up cuts; it keeps its turn as long as it works.
fn attempt_of(
    send: Arc<Send>,
    message_id: Uuid,
    turn: Option<Arc<Turn>>,
) -> impl FnOnce(State) -> Working<Attempt> {
    move |state| {
        Box::pin(async move {
            let _turn = turn;
            attempt(&state, &send, message_id).await
        })
    }
}

async fn attempt(state: &State, send: &Send, message_id: Uuid) -> Result<Attempt, Error> {
    let (mut transaction, claim) = begin(state, send).await.map_err(of_read)?;
    let executed = match claim {
        Ok(Claim::GoOn) => execute(state, transaction.connection(), send, message_id).await,
        Ok(Claim::Saved(answer, times)) => Ok(Executed::Saved(answer, times)),
        Ok(Claim::Vanished) => {
            transaction.rollback().await;
            return Ok(Attempt::Again(Failure::Conflict));
        }
        Ok(Claim::Mismatch) => {
            transaction.rollback().await;
            count("mismatch");
            return Err(Error::IdempotencyKeyMismatch);
        }
        Err(error) => {
            transaction.rollback().await;
            return match Failure::from(error) {
                Failure::Busy(_) => Ok(Attempt::InUse),
                failure => judged(failure),
            };
        }
    };
    match executed {
        Ok(executed) => match transaction.commit().await {
            Ok(()) => Ok(executed.done(send, message_id)),
            Err(error) => match Failure::of_commit(error) {
                // With a key the next attempt finds out what became of this one. Without, repeating
                // could send twice.
                lost @ Failure::CommitLost(_) if send.keyed.is_none() => Err(given_up(lost, false)),
                failure => judged_of_commit(failure),
            },
        },
        Err(refusal) => {
            transaction.rollback().await;
            match refusal {
                Refusal::Caller(error) => Err(error),
                Refusal::Database(error) => judged(Failure::from(error)),
            }
        }
    }
}

/// Begins a transaction and claims the key in it, if there is one. Only the claim has a short wait.
async fn begin(state: &State, send: &Send) -> sqlx::Result<(Transaction, sqlx::Result<Claim>)> {
    let Some(keyed) = &send.keyed else {
        let transaction = Transaction::begin(&state.pool).await?;
        return Ok((transaction, Ok(Claim::GoOn)));
    };
    let mut transaction = Transaction::begin_impatiently(&state.pool).await?;
    let claim = claim(state, &mut transaction, keyed).await;
    if matches!(claim, Ok(Claim::GoOn)) {
        transaction.be_patient().await?;
    }
    Ok((transaction, claim))
}

async fn claim(state: &State, transaction: &mut Transaction, keyed: &Keyed) -> sqlx::Result<Claim> {
    let Keyed {
        name,
        body_sha256,
        id,
    } = keyed;
    let times = Retention::of(state);
    idempotency::claim(transaction.connection(), name, body_sha256, *id, times).await
}

/// Whether a failed attempt, which did nothing, is tried again.
fn judged(failure: Failure) -> Result<Attempt, Error> {
    match failure {
        Failure::Conflict | Failure::Busy(_) => Ok(Attempt::Again(failure)),
        failure => Err(failure.into_error()),
    }
}

fn judged_of_commit(failure: Failure) -> Result<Attempt, Error> {
    match failure {
        Failure::CommitLost(_) => Ok(Attempt::Again(failure)),
        failure => judged(failure),
    }
}

/// What an execution in a transaction came to.
enum Executed {
    /// A new answer; with the message, if it was accepted.
    Fresh(Answer, Option<Uuid>),
    /// An answer that is there already.
    Saved(Answer, Times),
}

impl Executed {
    fn done(self, send: &Send, message_id: Uuid) -> Attempt {
        match self {
            Self::Fresh(answer, queued) => {
                if send.keyed.is_some() {
                    count("claimed");
                }
                Attempt::Answered(answer, Times::First, queued)
            }
            Self::Saved(answer, Times::First) => {
                count("claimed");
                let queued = (answer.status == StatusCode::CREATED).then_some(message_id);
                Attempt::Answered(answer, Times::First, queued)
            }
            Self::Saved(answer, Times::Again) => {
                count("replayed");
                Attempt::Answered(answer, Times::Again, None)
            }
        }
    }
}

/// Why an execution is undone.
#[derive(Debug)]
pub enum Refusal {
    /// The caller can mend it and use the key again.
    Caller(Error),
    /// The database failed.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The send itself, in a transaction whose key is claimed.
async fn execute(
    state: &State,
    connection: &mut Connection,
    send: &Send,
    message_id: Uuid,
) -> Result<Executed, Refusal> {
    let (store_id, wanted) = (send.store_id, &send.wanted);
    let (answer, queued) = match queue(state, connection, store_id, wanted, message_id).await? {
        Ok(accepted) => (created(&accepted)?, Some(message_id)),
        Err(error) if send.keyed.is_none() => return Err(Refusal::Caller(error)),
        Err(error) => (refused(&error, &send.request_id), None),
    };
    if let Some(keyed) = &send.keyed {
        idempotency::save(connection, &keyed.name, &answer, queued).await?;
    }
    Ok(Executed::Fresh(answer, queued))
}

fn created(accepted: &Accepted) -> Result<Answer, Refusal> {
    let body =
        serde_json::to_vec(accepted).map_err(|error| Refusal::Caller(Error::internal(error)))?;
    let Accepted {
        message_id,
        store_id,
        ..
    } = accepted;
    Ok(Answer {
        status: StatusCode::CREATED,
        content_type: "application/json".to_owned(),
        location: Some(format!("/api/v1/messages/{message_id}?store_id={store_id}")),
        body: body.into(),
    })
}

/// A refusal that is the outcome of an execution, and so is kept.
fn refused(error: &Error, request_id: &RequestId) -> Answer {
    Answer {
        status: error.status(),
        content_type: PROBLEM_JSON.to_owned(),
        location: None,
        body: error.problem_body(request_id.as_str()).into(),
    }
}

/// Writes a message, its event and its place in the outbox, in the caller's transaction, unless
/// something about the store or the person speaks against it.
///
/// # Errors
/// Variables that don't fit the template, or that the database fails.
pub async fn queue(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    wanted: &Wanted,
    message_id: Uuid,
) -> Result<Result<Accepted, Error>, Refusal> {
    let now = state.clock.now();
    let phone = wanted.to.as_str();
    let provider = channels::provider(&mut *connection, store_id).await?;
    let (content, known) = match &wanted.what {
        What::FreeForm(content) => (content.clone(), Known::default()),
        What::Template {
            template_id,
            variables,
            name,
            email,
        } => {
            let template =
                templates::to_send(&mut *connection, store_id, provider, *template_id).await?;
            let Some(template) = template else {
                return Ok(Err(Error::TemplateNotFound));
            };
            let filled = variables::fill(&template.variables, variables.clone())
                .map_err(|faults| Refusal::Caller(Error::Invalid(faults)))?;
            let known = Known {
                name: name.as_deref(),
                email: email.as_deref(),
            };
            (template_content(template, filled), known)
        }
    };
    let found = contacts::lock(&mut *connection, store_id, phone).await?;
    let is_free_form = matches!(wanted.what, What::FreeForm(_));
    if found
        .as_ref()
        .is_some_and(|contact| contact.opted_out_at.is_some())
    {
        return Ok(Err(Error::ContactOptedOut));
    }
    let is_open = found
        .as_ref()
        .is_some_and(|contact| contact.is_within_service_window(now));
    if is_free_form && !is_open {
        return Ok(Err(Error::OutsideServiceWindow));
    }
    let new_id = state.clock.new_id();
    let contact = contacts::upsert(connection, store_id, phone, &known, new_id, now).await?;
    if contact.opted_out_at.is_some() {
        // Made by somebody else since we looked.
        return Ok(Err(Error::ContactOptedOut));
    }
    let new = NewMessage {
        store_id,
        id: message_id,
        contact_id: contact.id,
        recipient: phone.to_owned(),
        content,
        provider: provider.as_str(),
        now,
    };
    messages::insert(connection, &new, state.clock.new_id()).await?;
    outbox::append(connection, store_id, deliver::KIND, &[message_id], now).await?;
    Ok(Ok(Accepted {
        message_id,
        status: Status::Queued,
        store_id,
        to: phone.to_owned(),
        contact_id: contact.id,
        created_at: now,
    }))
}

fn template_content(template: templates::ToSend, variables: Vec<(String, String)>) -> Content {
    Content::Template {
        template_id: template.id,
        name: template.name,
        language: template.language,
        variables,
    }
}

/// Keeps a fault of ours, whose transaction was rolled back, as the key's answer, unless somebody
/// else has answered meanwhile.
fn save_fault(
    send: Arc<Send>,
    fault: Error,
    turn: Option<Arc<Turn>>,
) -> impl FnOnce(State) -> Working<(Answer, Times)> {
    move |state| {
        Box::pin(async move {
            let _turn = turn;
            let request_id = &send.request_id;
            tracing::error!(%request_id, error = %fault, "a send failed, and its answer is kept");
            let answer = refused(&fault, request_id);
            let Some(keyed) = &send.keyed else {
                return Ok((answer, Times::First));
            };
            let mut transaction = Transaction::begin_impatiently(&state.pool)
                .await
                .map_err(of_read)?;
            let saved = match claim(&state, &mut transaction, keyed).await {
                Ok(Claim::GoOn) => {
                    idempotency::save(transaction.connection(), &keyed.name, &answer, None).await
                }
                Ok(Claim::Saved(answer, times)) => {
                    transaction.rollback().await;
                    return Ok((answer, times));
                }
                Ok(Claim::Mismatch | Claim::Vanished) => Ok(()),
                Err(error) => Err(error),
            };
            match saved {
                Ok(()) => transaction
                    .commit()
                    .await
                    .map_err(|error| Failure::of_commit(error).into_error())?,
                Err(error) => {
                    transaction.rollback().await;
                    tracing::warn!(%error, "the answer could not be kept: a retry runs");
                }
            }
            Ok((answer, Times::First))
        })
    }
}
