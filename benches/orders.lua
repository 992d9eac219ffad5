-- Closed-loop load: POST of orders that are there, one random key a request.
--
--   wrk -s orders.lua URL -- \
--     MODE FIRST_STORE ORDERS_PER_STORE ORDERS STAMP TEMPLATE LINE_ITEMS KEY
--
-- MODE `changed`: no two requests carry the same content, for the order as for its customer, so
-- each of them has to write both and two events. MODE `fixed`: a key's content is always the same.
-- STAMP is a number that grows from run to run by more than there are requests in a run.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local function read(name)
  local file = assert(io.open(name, "r"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  changed = args[1] == "changed"
  first_store, orders_per_store, orders = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  -- Thread by thread its own digits, so that no two threads ever make the same content.
  stamp = tonumber(args[5]) + number
  template = read(args[6]):gsub("%s+$", "")
  line_items = {}
  for line in read(args[7]):gmatch("[^\n]+") do
    line_items[#line_items + 1] = line
  end
  math.randomseed(stamp % 2147483647)
  for _ = 1, 10 do math.random() end

  before_path = "POST /api/v1/stores/"
  before_length = "/orders HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\nAuthorization: Bearer " .. args[8]
    .. "\r\nContent-Type: application/json\r\nContent-Length: "
end

function request()
  local n = math.random(orders)
  local store = first_store + math.floor((n - 1) / orders_per_store)
  local price, lifetime, items
  if changed then
    stamp = stamp + 16
    price = string.format("%d.%02d", math.random(100000, 999999), math.random(0, 99))
    lifetime = string.format("%.0f", stamp)
    items = line_items[math.random(#line_items)]
  else
    price = string.format("%d.%02d", 100000 + n % 900000, n % 100)
    lifetime = string.format("%d", n)
    items = line_items[1 + n % #line_items]
  end
  local body = string.format(template, n, price, n, n, n, lifetime, items)
  return before_path .. store .. before_length .. #body .. "\r\n\r\n" .. body
end

-- One line of JSON for the program that runs us.
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "refused": %d, "broken": %d, '
      .. '"p50_us": %.1f, "p99_us": %.1f}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
