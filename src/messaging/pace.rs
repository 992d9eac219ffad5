//! How fast messages leave: 80 a second from one number, one per 6 s to one recipient, each with a
//! burst that was saved up.
//!
//! The generic cell rate algorithm (ITU-T I.371): one time per number and recipient, when the next
//! message could leave if none were saved up. A message may leave as long as that time is no further
//! ahead than the burst allows; then the time moves on by one interval. The times are kept in the
//! database, so several processes keep one pace. What may not leave yet waits in the outbox, due when
//! its turn will come.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::database::Connection;
use crate::outbox::Leased;

/// A rate, and what can be saved up.
#[derive(Clone, Copy, Debug)]
struct Rate {
    interval: TimeDelta,
    burst: i32,
}

/// What the Cloud API takes from one number by default.
const NUMBER: Rate = Rate {
    interval: TimeDelta::microseconds(12_500),
    burst: 40,
};
/// What it takes to one recipient.
const RECIPIENT: Rate = Rate {
    interval: TimeDelta::seconds(6),
    burst: 10,
};
/// What may leave within this time is kept in hand until then.
const NEAR: TimeDelta = TimeDelta::milliseconds(1_000);

/// What is overdue by so much has not only just missed its turn.
const LATE: TimeDelta = TimeDelta::seconds(3);

impl Rate {
    /// The most that a kept time can be ahead; more comes from a clock that was set.
    fn furthest(self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.interval * self.burst + NEAR
    }

    /// When a message may leave, by the time that is kept.
    fn leaves_at(self, next: Option<DateTime<Utc>>, now: DateTime<Utc>) -> DateTime<Utc> {
        let saved = self.interval * (self.burst - 1);
        next.map_or(now, |next| now.max(next - saved))
    }

    /// The time to keep after a message that leaves at this time.
    fn after(self, next: Option<DateTime<Utc>>, at: DateTime<Utc>) -> DateTime<Utc> {
        next.map_or(at, |next| next.max(at)) + self.interval
    }
}

/// When a message may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// At this time, which is near; it counts from now on.
    At(DateTime<Utc>),
    /// Not before this time; it does not count yet.
    Later(DateTime<Utc>),
}

/// A message that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// To whom.
    pub contact_id: Uuid,
    /// It waited for its turn before, and comes when it was to come. What comes late begins anew: with
    /// it come all the others that are late.
    pub parked: bool,
}

impl Waiting {
    /// A leased message.
    #[must_use]
    pub fn of(row: &Leased, contact_id: Uuid, now: DateTime<Utc>) -> Self {
        Self {
            contact_id,
            parked: row.parked && now - row.due_at < LATE,
        }
    }
}

/// The times of one number and its recipients.
#[derive(Clone, Debug, Default)]
struct Times {
    number: Option<DateTime<Utc>>,
    /// Up to when messages that wait for the first time are due.
    parked: Option<DateTime<Utc>>,
    recipients: HashMap<Uuid, Option<DateTime<Utc>>>,
}

impl Times {
    /// Gives turns in order. Those that come later are spread as they would leave: a backlog is
    /// looked at once, and once again when its time has come. Who comes back and finds that others
    /// took the turn stays near the front; where the provider is too slow to take any, nobody does.
    fn turns(&mut self, waiting: &[Waiting], most_now: usize, now: DateTime<Utc>) -> Vec<Turn> {
        let mut ahead = self.clone();
        let mut left = most_now;
        waiting
            .iter()
            .map(|one| {
                let at = ahead.take(one.contact_id, now);
                if left > 0 && at - now <= NEAR {
                    left -= 1;
                    self.take(one.contact_id, now);
                    return Turn::At(at);
                }
                let at = at.max(now + NEAR);
                if one.parked && left > 0 {
                    return Turn::Later(at);
                }
                // By the number's pace alone: one recipient's wait holds nobody else up.
                let soonest = now + NEAR;
                let place = self.parked.map_or(soonest, |parked| parked.max(soonest));
                self.parked = Some(place + NUMBER.interval);
                Turn::Later(at.max(place))
            })
            .collect()
    }

    fn take(&mut self, contact: Uuid, now: DateTime<Utc>) -> DateTime<Utc> {
        let recipient = self.recipients.entry(contact).or_default();
        let at = NUMBER
            .leaves_at(self.number, now)
            .max(RECIPIENT.leaves_at(*recipient, now));
        *recipient = Some(RECIPIENT.after(*recipient, at));
        // A recipient's wait holds nobody else up.
        self.number = Some(NUMBER.after(self.number, now));
        at
    }
}

/// Gives turns to messages, in order, and keeps the times, in the caller's transaction. At most so
/// many turns are near: more could not be under way at once.
///
/// # Errors
/// When the database fails.
pub async fn turns(
    connection: &mut Connection,
    store_id: i64,
    waiting: &[Waiting],
    most_now: usize,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Turn>> {
    let contacts: Vec<Uuid> = waiting.iter().map(|one| one.contact_id).collect();
    let mut times = load(connection, store_id, &contacts, now).await?;
    let turns = times.turns(waiting, most_now, now);
    let mut moved: Vec<Uuid> = contacts
        .iter()
        .zip(&turns)
        .filter(|(_, turn)| matches!(turn, Turn::At(_)))
        .map(|(contact, _)| *contact)
        .collect();
    // Everybody locks contacts in the order of their ids.
    moved.sort_unstable();
    moved.dedup();
    store(connection, store_id, &times, &moved).await?;
    Ok(turns)
}

async fn load(
    connection: &mut Connection,
    store_id: i64,
    contacts: &[Uuid],
    now: DateTime<Utc>,
) -> sqlx::Result<Times> {
    sqlx::query!(
        "insert into channel_states (store_id) values ($1) on conflict (store_id) do nothing",
        store_id,
    )
    .execute(&mut *connection)
    .await?;
    // The lock of the number: whoever gives turns for it does so alone.
    let number = sqlx::query!(
        "select next_send_at, parked_until from channel_states where store_id = $1 for update",
        store_id,
    )
    .fetch_one(&mut *connection)
    .await?;
    let recipients = sqlx::query!(
        "select id, next_send_at from contacts where store_id = $1 and id = any($2)",
        store_id,
        contacts,
    )
    .fetch_all(connection)
    .await?;
    let clamped =
        |rate: Rate, next: Option<DateTime<Utc>>| next.map(|next| next.min(rate.furthest(now)));
    Ok(Times {
        number: clamped(NUMBER, number.next_send_at),
        parked: number.parked_until,
        recipients: recipients
            .into_iter()
            .map(|row| (row.id, clamped(RECIPIENT, row.next_send_at)))
            .collect(),
    })
}

async fn store(
    connection: &mut Connection,
    store_id: i64,
    times: &Times,
    moved: &[Uuid],
) -> sqlx::Result<()> {
    sqlx::query!(
        "update channel_states set next_send_at = $2, parked_until = $3 where store_id = $1",
        store_id,
        times.number,
        times.parked,
    )
    .execute(&mut *connection)
    .await?;
    let next: Vec<Option<DateTime<Utc>>> = moved
        .iter()
        .map(|contact| times.recipients.get(contact).copied().flatten())
        .collect();
    sqlx::query!(
        "update contacts c
        set next_send_at = moved.next_send_at
        from unnest($2::uuid[], $3::timestamptz[]) as moved (id, next_send_at)
        where c.store_id = $1 and c.id = moved.id",
        store_id,
        moved,
        &next as &[Option<DateTime<Utc>>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(contact_id: Uuid) -> Waiting {
        Waiting {
            contact_id,
            parked: false,
        }
    }

    fn again(contact_id: Uuid) -> Waiting {
        Waiting {
            contact_id,
            parked: true,
        }
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000, 0).expect("in range")
    }

    #[test]
    fn a_recipient_gets_a_burst_and_then_one_per_six_seconds() {
        let (mut times, contact) = (Times::default(), Uuid::from_u128(1));
        let turns = times.turns(&[to(contact); 14], 64, now());
        assert_eq!(turns[..10], [Turn::At(now()); 10]);
        for (n, turn) in (1..=4).zip(&turns[10..]) {
            let Turn::Later(at) = turn else {
                panic!("{n} is early")
            };
            assert!(*at >= now() + TimeDelta::seconds(6 * n));
        }
        // Six seconds later one of them may leave, and the others see that it did.
        let then = now() + TimeDelta::seconds(6);
        let turns = times.turns(&[again(contact); 2], 64, then);
        assert_eq!(turns[0], Turn::At(then));
        assert_eq!(turns[1], Turn::Later(then + TimeDelta::seconds(6)));
        // After a minute's rest the burst is there again.
        let rested = then + TimeDelta::seconds(60);
        assert_eq!(
            times.turns(&[to(contact); 10], 64, rested),
            [Turn::At(rested); 10]
        );
    }

    #[test]
    fn a_number_sends_eighty_a_second_over_any_length() {
        let (mut times, mut clock, mut sent) = (Times::default(), now(), 0_i64);
        let mut person = 0;
        while clock < now() + TimeDelta::seconds(20) {
            let waiting: Vec<Waiting> = (0..128)
                .map(|_| {
                    person += 1;
                    to(Uuid::from_u128(person))
                })
                .collect();
            let turns = times.turns(&waiting, 128, clock);
            let near = turns.iter().filter(|turn| matches!(turn, Turn::At(_)));
            sent += i64::try_from(near.count()).expect("few");
            clock += TimeDelta::milliseconds(100);
        }
        // 20 s and what is given ahead for the next one, and the burst.
        assert!((1_600..=1_600 + 80 + 40).contains(&sent), "{sent}");
    }

    #[test]
    fn one_recipient_holds_up_nobody_else() {
        let mut times = Times::default();
        let slow = Uuid::from_u128(1);
        let mut waiting = vec![to(slow); 30];
        waiting.push(to(Uuid::from_u128(2)));
        let turns = times.turns(&waiting, 64, now());
        let Turn::At(at) = turns[30] else {
            panic!("the other one waits");
        };
        assert!(at - now() < TimeDelta::seconds(1));
    }

    #[test]
    fn no_more_are_near_than_can_be_under_way() {
        let waiting: Vec<Waiting> = (0..10).map(|n| to(Uuid::from_u128(n))).collect();
        let turns = Times::default().turns(&waiting, 3, now());
        let near = turns.iter().filter(|turn| matches!(turn, Turn::At(_)));
        assert_eq!(near.count(), 3);
    }

    /// A worker over a backlog whose provider answers after so long: leases per message, and seconds
    /// until all are sent.
    fn worked_off(messages: usize, latency: TimeDelta, places: usize) -> (usize, i64) {
        let (mut times, mut leases, mut clock) = (Times::default(), 0, now());
        let mut waiting: Vec<(DateTime<Utc>, usize, bool)> =
            (0..messages).map(|n| (now(), n, false)).collect();
        let mut under_way: Vec<DateTime<Utc>> = Vec::new();
        while !waiting.is_empty() {
            under_way.retain(|until| *until > clock);
            waiting.sort_unstable();
            let due = waiting.iter().take_while(|(due, ..)| *due <= clock).count();
            let slice: Vec<_> = waiting.drain(..due.min(128)).collect();
            let is_full = slice.len() == 128;
            leases += slice.len();
            let rows: Vec<Waiting> = slice
                .iter()
                .map(|(due, n, parked)| Waiting {
                    contact_id: Uuid::from_u128(*n as u128),
                    parked: *parked && clock - *due < LATE,
                })
                .collect();
            let turns = times.turns(&rows, places - under_way.len(), clock);
            for ((_, n, _), turn) in slice.into_iter().zip(turns) {
                match turn {
                    Turn::At(at) => under_way.push(at + latency),
                    Turn::Later(at) => waiting.push((at, n, true)),
                }
            }
            if !is_full {
                clock += TimeDelta::milliseconds(250);
            }
        }
        (leases / messages, (clock - now()).num_seconds())
    }

    #[test]
    fn a_backlog_is_not_leased_again_and_again_however_slow_the_provider_is() {
        for (latency_ms, most_s) in [(200, 75), (1_000, 75), (3_000, 200)] {
            let latency = TimeDelta::milliseconds(latency_ms);
            let (leases, seconds) = worked_off(5_000, latency, 100);
            assert!(leases <= 8, "{latency_ms} ms: {leases} leases a message");
            assert!(seconds <= most_s, "{latency_ms} ms: {seconds} s");
        }
    }

    #[test]
    fn a_backlog_is_spread_over_the_time_that_it_takes() {
        let (mut times, mut due) = (Times::default(), Vec::new());
        for batch in 0..100_u128 {
            let people = (0..128).map(|n| to(Uuid::from_u128(batch * 128 + n)));
            let turns = times.turns(&people.collect::<Vec<_>>(), 32, now());
            due.extend(turns.iter().filter_map(|turn| match turn {
                Turn::At(_) => None,
                Turn::Later(at) => Some(*at),
            }));
        }
        assert!(due.len() > 12_000);
        let last = due.iter().max().expect("some wait");
        let span = (*last - now()).num_seconds();
        assert!(
            (150..=165).contains(&span),
            "12,600 messages at 80 a second: {span} s"
        );
        // In any second about as many come back as can leave.
        for second in 2..150 {
            let from = now() + TimeDelta::seconds(second);
            let until = from + TimeDelta::seconds(1);
            let back = due.iter().filter(|at| (from..until).contains(*at)).count();
            assert!(back <= 170, "{back} in second {second}");
        }
    }
}
