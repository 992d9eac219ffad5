//! Where a row lies.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type};

/// Where a row lay when it was read: PostgreSQL's `ctid`, a page and a slot in it.
///
/// Whoever has just read a row finds it there again without another walk down its index. The place
/// says nothing about the row: it moves with every change, and another row may come to lie there. So
/// it stands beside the key and the version in a condition, never for them, and who doesn't find the
/// row there reads it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    page: u32,
    slot: u16,
}

/// `tid` in `pg_type`, the same in every database.
const TID: Oid = Oid(27);
/// `tid[]` in `pg_type`.
const TIDS: Oid = Oid(1010);
/// Four bytes of page, two of slot, as `tid_send` writes them.
const BYTES: usize = 6;

impl Type<Postgres> for Place {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TID)
    }
}

impl PgHasArrayType for Place {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIDS)
    }
}

impl<'r> Decode<'r, Postgres> for Place {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let bytes: [u8; BYTES] = value.as_bytes()?.try_into()?;
        let [a, b, c, d, e, f] = bytes;
        Ok(Self {
            page: u32::from_be_bytes([a, b, c, d]),
            slot: u16::from_be_bytes([e, f]),
        })
    }
}

impl Encode<'_, Postgres> for Place {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.page.to_be_bytes());
        buffer.extend_from_slice(&self.slot.to_be_bytes());
        Ok(IsNull::No)
    }
}
