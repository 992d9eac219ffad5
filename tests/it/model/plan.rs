//! What the clients will do, as plain data out of a seed. Which version, which earlier body and
//! which time that means is decided when a step's turn comes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::rules::Kind;

/// One more than the most items of a bulk request.
const MOST_ITEMS: usize = 60;

/// A record of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub kind: Kind,
    pub at: usize,
}

/// How many records there are of a kind: few, so that everybody meets everybody.
pub fn records_of(kind: Kind) -> usize {
    match kind {
        Kind::Orders => 8,
        Kind::Customers => 4,
        Kind::Checkouts | Kind::Shipments => 3,
    }
}

/// All records of a round.
pub fn targets() -> impl Iterator<Item = Target> {
    let of = |kind| (0..records_of(kind)).map(move |at| Target { kind, at });
    Kind::ALL.into_iter().flat_map(of)
}

/// What a client does next.
#[derive(Clone, Debug)]
pub enum Step {
    One(Single),
    Many(Bulk),
    Read(Target),
}

/// A write of one record.
#[derive(Clone, Debug)]
pub struct Single {
    pub target: Target,
    pub doing: Doing,
    pub condition: Condition,
    pub then: Then,
}

/// What a single write does.
#[derive(Clone, Debug)]
pub enum Doing {
    Post(Shape),
    Patch(Shape),
    /// A body that was sent before, so many bodies ago; 0 is the newest acknowledged one.
    Replay(usize),
    /// The newest acknowledged content with a later time of the caller's system.
    Newer,
}

/// A precondition.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    None,
    /// `If-Match` with the newest version that any client has been told of.
    Newest,
    /// `If-Match` with the version before that one.
    Older,
    /// `If-None-Match: *`.
    New,
}

/// What a client does right after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Goes,
    /// Reads the record, where there are two servers from the other one.
    Looks,
}

/// How a body looks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bits: which optional members are there.
    pub members: u16,
    /// Bits: which of them a PATCH clears.
    pub clears: u16,
    pub source: Source,
    /// Who ordered.
    pub person: Person,
}

impl Shape {
    /// Says as little as a body can.
    pub const PLAIN: Self = Self {
        members: 0,
        clears: 0,
        source: Source::None,
        person: Person {
            at: 0,
            naming: Naming::ByBoth,
            members: 0,
        },
    };
}

/// `source_updated_at` of a body.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    None,
    /// Later than all before.
    Fresh,
    /// So many ticks late.
    Late(u64),
}

/// A customer inside an order or a checkout, or how a customer is named in its own POST.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    pub at: usize,
    pub naming: Naming,
    /// Bits: which optional members are there; 0 says nothing but who it is.
    pub members: u16,
}

/// How a customer is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    ByPhone,
    ByBoth,
}

/// Many writes in one request.
#[derive(Clone, Debug)]
pub struct Bulk {
    pub kind: Kind,
    pub form: Form,
    pub items: Vec<Item>,
    /// How often it is sent, one after the other: a caller who is not sure.
    pub times: usize,
    /// Of the last item's record.
    pub then: Then,
}

/// How a bulk request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Document,
    /// `?atomic=true`.
    Atomic,
    Stream,
}

/// An item of a bulk request.
#[derive(Clone, Debug)]
pub struct Item {
    /// Which record.
    pub at: usize,
    pub what: What,
}

/// What an item holds.
#[derive(Clone, Debug)]
pub enum What {
    New(Shape),
    /// The body that the request had for this key before.
    Again,
    /// A body that was sent before, so many bodies ago.
    Known(usize),
    /// A required member is missing.
    Faulty(Shape),
}

impl Item {
    /// The record of an item in a request for this kind.
    pub fn of(&self, kind: Kind) -> Target {
        Target { kind, at: self.at }
    }
}

impl Step {
    /// How many writes it asks for.
    pub fn writes(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(bulk) => bulk.items.len() * bulk.times,
            Self::Read(_) => 0,
        }
    }
}

/// The plan of a round: just so many writes, and reads among them.
///
/// Clients take their next step from it as they come, so a plan made smaller runs differently, and
/// shrinking would find nothing: proptest is used for making plans alone.
pub fn plan(seed: usize, round: usize, writes: usize) -> Vec<Step> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(seed as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&(round as u64).to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut plan, mut left) = (Vec::new(), writes);
    while left > 0 {
        let tree = step().new_tree(&mut runner).expect("nothing is filtered");
        let step = cut(tree.current(), left);
        left -= step.writes();
        plan.push(step);
    }
    plan
}

/// A step of at most so many writes.
fn cut(mut step: Step, most: usize) -> Step {
    if let Step::Many(bulk) = &mut step
        && bulk.items.len() * bulk.times > most
    {
        bulk.items.truncate(most);
        bulk.times = 1;
    }
    step
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => single().prop_map(Step::One),
        7 => bulk().prop_map(Step::Many),
        8 => target(kind()).prop_map(Step::Read),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        10 => Just(Kind::Orders),
        3 => Just(Kind::Checkouts),
        2 => Just(Kind::Shipments),
        5 => Just(Kind::Customers),
    ]
}

fn target(kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Target> {
    let of = |(kind, at)| Target {
        kind,
        at: at % records_of(kind),
    };
    (kind, 0_usize..24).prop_map(of)
}

fn single() -> impl Strategy<Value = Single> {
    (target(kind()), doing(), condition(), then()).prop_map(|(target, doing, condition, then)| {
        let doing = match doing {
            Doing::Patch(shape) if target.kind.rules().mutable.is_empty() => Doing::Post(shape),
            doing => doing,
        };
        Single {
            target,
            doing,
            condition,
            then,
        }
    })
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![3 => Just(Then::Goes), 1 => Just(Then::Looks)]
}

fn doing() -> impl Strategy<Value = Doing> {
    prop_oneof![
        8 => shape().prop_map(Doing::Post),
        4 => shape().prop_map(Doing::Patch),
        4 => prop_oneof![3 => Just(0), 2 => 0_usize..12].prop_map(Doing::Replay),
        2 => Just(Doing::Newer),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        15 => Just(Condition::None),
        3 => Just(Condition::Newest),
        1 => Just(Condition::Older),
        1 => Just(Condition::New),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let source = prop_oneof![
        5 => Just(Source::None),
        4 => Just(Source::Fresh),
        1 => (1_u64..200).prop_map(Source::Late),
    ];
    (any::<u16>(), any::<u16>(), source, person()).prop_map(|(members, clears, source, person)| {
        Shape {
            members,
            clears,
            source,
            person,
        }
    })
}

fn person() -> impl Strategy<Value = Person> {
    let naming = prop_oneof![1 => Just(Naming::ByPhone), 3 => Just(Naming::ByBoth)];
    let members = prop_oneof![1 => Just(0), 4 => any::<u16>()];
    (0..records_of(Kind::Customers), naming, members).prop_map(|(at, naming, members)| Person {
        at,
        naming,
        members,
    })
}

/// Over few records, so that several requests can be on their way at once (`Round::turns`).
fn bulk() -> impl Strategy<Value = Bulk> {
    let form = prop_oneof![
        2 => Just(Form::Document),
        1 => Just(Form::Atomic),
        2 => Just(Form::Stream),
    ];
    let times = prop_oneof![6 => Just(1), 1 => Just(2)];
    let records = (0_usize..24, 1_usize..=3);
    let items = vec(item(), 1..MOST_ITEMS);
    let parts = (kind(), form, records, items, times, then());
    parts.prop_map(|(kind, form, (first, count), mut items, times, then)| {
        for item in &mut items {
            item.at = (first + item.at % count) % records_of(kind);
        }
        Bulk {
            kind,
            form,
            items,
            times,
            then,
        }
    })
}

fn item() -> impl Strategy<Value = Item> {
    let what = prop_oneof![
        90 => shape().prop_map(What::New),
        10 => Just(What::Again),
        10 => (0_usize..6).prop_map(What::Known),
        1 => shape().prop_map(What::Faulty),
    ];
    (0_usize..24, what).prop_map(|(at, what)| Item { at, what })
}
