// The peer of P2: the same upsert of an order with its customer and both events, as a competent
// Node developer would write it. Two workers, a pool of connections each, one prepared statement a
// request, validation and answers by JSON schema, keys checked against the same table.

'use strict'

const cluster = require('node:cluster')
const { createHash, randomFillSync } = require('node:crypto')
const fastify = require('fastify')
const pg = require('pg')

// Counts and versions are numbers in JSON.
pg.types.setTypeParser(pg.types.builtins.INT8, Number)

const WORKERS = 2
const CONNECTIONS_A_WORKER = Number(process.env.FASTIFY_CONNECTIONS || 8)
const REMEMBERED_MS = 2500

const anything = { type: 'object', additionalProperties: true }
const text = (maxLength) => ({ type: ['string', 'null'], maxLength })
const tags = { type: 'array', maxItems: 250, items: { type: 'string', maxLength: 255 } }
const money = { type: 'string', pattern: '^\\d{1,15}(\\.\\d{1,4})?$' }

const customerIn = {
  type: 'object',
  additionalProperties: false,
  required: ['external_id', 'phone'],
  properties: {
    external_id: { type: 'string', minLength: 1, maxLength: 255 },
    phone: { type: 'string', pattern: '^\\+[1-9]\\d{6,14}$' },
    first_name: text(255),
    last_name: text(255),
    email: { type: ['string', 'null'], format: 'email', maxLength: 254 },
    tags,
    lifetime_value: { type: ['integer', 'null'], minimum: 0 }
  }
}

const orderIn = {
  type: 'object',
  additionalProperties: false,
  required: ['external_id', 'placed_at', 'total_price', 'customer'],
  properties: {
    external_id: { type: 'string', minLength: 1, maxLength: 255 },
    placed_at: { type: 'string', format: 'date-time' },
    total_price: money,
    currency: { type: ['string', 'null'], pattern: '^[A-Z]{3}$' },
    financial_status: text(64),
    fulfillment_status: text(64),
    customer: customerIn,
    line_items: { type: 'array', maxItems: 5000, items: anything },
    tags,
    metadata: anything
  }
}

const nullable = { type: ['string', 'null'] }
const moment = { type: 'string', format: 'date-time' }

const orderOut = {
  type: 'object',
  properties: {
    id: { type: 'string' },
    store_id: { type: 'integer' },
    external_id: { type: 'string' },
    placed_at: moment,
    total_price: { type: 'string' },
    currency: nullable,
    financial_status: nullable,
    fulfillment_status: nullable,
    customer: {
      type: 'object',
      properties: {
        id: { type: 'string' },
        external_id: nullable,
        phone: { type: 'string' },
        first_name: nullable,
        last_name: nullable,
        email: nullable,
        tags: { type: 'array', items: { type: 'string' } },
        lifetime_value: { type: ['integer', 'null'] }
      }
    },
    line_items: { type: 'array', items: anything },
    tags: { type: 'array', items: { type: 'string' } },
    metadata: anything,
    version: { type: 'integer' },
    created_at: moment,
    updated_at: moment
  }
}

const UPSERT = {
  name: 'upsert-order',
  text: `
with customer as (
  insert into customers as c (
    store_id, id, external_id, phone, first_name, last_name, email, tags, lifetime_value, metadata,
    version, replaced_version, created_at, updated_at
  )
  values ($1, $2, $3, $4, $5, $6, $7, coalesce($8::jsonb, '[]'), $9, '{}', 1, 0, now(), now())
  on conflict (external_id, store_id) where external_id is not null do update set
    phone = excluded.phone, first_name = excluded.first_name, last_name = excluded.last_name,
    email = excluded.email, tags = excluded.tags, lifetime_value = excluded.lifetime_value,
    version = c.version + 1, replaced_version = c.version, updated_at = excluded.updated_at
  returning store_id, id, external_id, phone, first_name, last_name, email, tags, lifetime_value,
    version, updated_at
),
written as (
  insert into orders as o (
    store_id, id, external_id, placed_at, total_price, currency, financial_status,
    fulfillment_status, customer_id, customer_digest, line_items, tags, metadata, version,
    replaced_version, created_at, updated_at
  )
  select
    $1, $10, $11, $12, $13, $14, $15, $16, customer.id, $17, $18, $19, $20, 1, 0, now(), now()
  from customer
  on conflict (external_id, store_id) do update set
    placed_at = excluded.placed_at, total_price = excluded.total_price,
    currency = excluded.currency, financial_status = excluded.financial_status,
    fulfillment_status = excluded.fulfillment_status, customer_id = excluded.customer_id,
    customer_digest = excluded.customer_digest, line_items = excluded.line_items,
    tags = excluded.tags, metadata = excluded.metadata, version = o.version + 1,
    replaced_version = o.version, updated_at = excluded.updated_at
  returning *
),
noted as (
  insert into events (store_id, id, type, resource, record_id, external_id, version, created_at)
  select
    store_id, $21::uuid, case version when 1 then 'customer.created' else 'customer.updated' end,
    'customers', id, null, version, updated_at
  from customer
  union all
  select
    store_id, $22::uuid, case version when 1 then 'order.created' else 'order.updated' end,
    'orders', id, external_id, version, updated_at
  from written
)
select
  o.id, o.store_id, o.external_id, o.placed_at, o.total_price, o.currency, o.financial_status,
  o.fulfillment_status, o.line_items, o.tags, o.metadata, o.version, o.created_at, o.updated_at,
  c.id as customer_id, c.external_id as customer_external_id, c.phone, c.first_name, c.last_name,
  c.email, c.tags as customer_tags, c.lifetime_value
from written o, customer c`
}

const random = Buffer.alloc(4096)
let used = random.length

/** Ids that grow with time keep the inserts at the end of their index. */
function uuidv7 () {
  if (used + 10 > random.length) {
    randomFillSync(random)
    used = 0
  }
  const rest = random.subarray(used, used + 10)
  used += 10
  rest[0] = (rest[0] & 0x0f) | 0x70
  rest[2] = (rest[2] & 0x3f) | 0x80
  return Date.now().toString(16).padStart(12, '0') + rest.toString('hex')
}

/** What an expensive look-up found, for a few seconds. */
function remembered (lookUp) {
  const known = new Map()
  return async (key) => {
    const entry = known.get(key)
    if (entry && entry.until > Date.now()) return entry.found
    const found = await lookUp(key)
    known.set(key, { found, until: Date.now() + REMEMBERED_MS })
    return found
  }
}

function values (storeId, order) {
  const customer = order.customer
  const digest = createHash('sha256').update(JSON.stringify(customer)).digest()
  return [
    storeId, uuidv7(), customer.external_id, customer.phone, customer.first_name,
    customer.last_name, customer.email, customer.tags && JSON.stringify(customer.tags),
    customer.lifetime_value, uuidv7(), order.external_id, order.placed_at, order.total_price,
    order.currency, order.financial_status, order.fulfillment_status, digest,
    JSON.stringify(order.line_items || []), JSON.stringify(order.tags || []),
    JSON.stringify(order.metadata || {}), uuidv7(), uuidv7()
  ]
}

function answer (row) {
  return {
    ...row,
    customer: {
      id: row.customer_id,
      external_id: row.customer_external_id,
      phone: row.phone,
      first_name: row.first_name,
      last_name: row.last_name,
      email: row.email,
      tags: row.customer_tags,
      lifetime_value: row.lifetime_value
    }
  }
}

function build () {
  const pool = new pg.Pool({
    connectionString: process.env.DATABASE_URL,
    max: CONNECTIONS_A_WORKER,
    options: '-c plan_cache_mode=force_generic_plan'
  })
  const findKey = remembered(async (digest) => {
    const statement =
      'select team_id, store_id from api_keys where key_sha256 = $1 and revoked_at is null'
    return (await pool.query(statement, [Buffer.from(digest, 'hex')])).rows[0]
  })
  const findStore = remembered(async (id) => {
    const statement = "select team_id from stores where store_id = $1 and status = 'active'"
    return (await pool.query(statement, [id])).rows[0]
  })

  const app = fastify({ ajv: { customOptions: { coerceTypes: false, removeAdditional: false } } })
  app.addHook('onRequest', async (request, reply) => {
    const authorization = request.headers.authorization || ''
    const digest = createHash('sha256').update(authorization.slice('Bearer '.length)).digest('hex')
    const key = await findKey(digest)
    if (!key) return reply.code(401).send({ code: 'unauthorized' })
    const store = await findStore(request.params.store_id)
    if (!store) return reply.code(404).send({ code: 'store_not_found' })
    const isOpen = store.team_id === key.team_id &&
      (key.store_id === null || key.store_id === Number(request.params.store_id))
    if (!isOpen) return reply.code(403).send({ code: 'store_forbidden' })
  })
  const storeId = { type: 'string', pattern: '^\\d{1,18}$' }
  const params = { type: 'object', properties: { store_id: storeId } }
  const schema = { params, body: orderIn, response: { 200: orderOut, 201: orderOut } }
  app.post('/api/v1/stores/:store_id/orders', { schema }, async (request, reply) => {
    const parameters = values(request.params.store_id, request.body)
    const { rows: [row] } = await pool.query({ ...UPSERT, values: parameters })
    reply.code(row.version === 1 ? 201 : 200)
    return answer(row)
  })
  return app
}

if (cluster.isPrimary) {
  let listening = 0
  cluster.on('listening', (_, address) => {
    listening += 1
    if (listening === WORKERS) {
      console.error(`fastify serves on http://127.0.0.1:${address.port}`)
    }
  })
  cluster.on('exit', (_, code) => {
    if (code !== 0) process.exit(1)
  })
  process.on('SIGTERM', () => cluster.disconnect(() => process.exit(0)))
  for (let worker = 0; worker < WORKERS; worker += 1) cluster.fork()
} else {
  process.on('SIGTERM', () => {})
  // A worker whose primary is gone, or wants it to go, has nothing more to do.
  process.on('disconnect', () => process.exit(0))
  build().listen({ port: 0, host: '127.0.0.1' })
}
