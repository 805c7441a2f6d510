-- Windows, concurrent work and the bucket of everybody, counted for all gateways: as limits.py counts them for one.
-- A window is a hash: `i` the slice of now, `n` the sum, and 61 slots in a ring, of which the oldest is the one that is
-- just leaving. Time is Redis' own. KEYS: the lease of the gateway, the bucket, then of each meter its windows and who
-- works now; the figures of a meter are concurrent, minute, hour, day, tokens, each -1 where there is no bound.

local NAMES, STEPS = {'m', 'h', 'd', 't'}, {1, 60, 1440, 1}
local clock = redis.call('TIME')
local seconds, micro = tonumber(clock[1]), tonumber(clock[2])

-- slice of now and sum, after what has left the window is forgotten
local function slide(key, name, step)
  local index = math.floor(seconds / step)
  local found = redis.call('HMGET', key, name .. 'i', name .. 'n')
  local last, total = tonumber(found[1]), tonumber(found[2]) or 0
  if last and index <= last and last - index <= 60 then
    return last, total -- a clock that went back a little stands still
  end
  local from = index - 60
  if last and last < index then from = math.max(from, last + 1) end
  local slots = {}
  for each = from, index do slots[#slots + 1] = name .. each % 61 end
  for _, count in ipairs(redis.call('HMGET', key, unpack(slots))) do
    total = total - (tonumber(count) or 0)
  end
  redis.call('HDEL', key, unpack(slots))
  if #slots == 61 then total = 0 end
  redis.call('HSET', key, name .. 'i', index, name .. 'n', total)
  return index, total
end

local function add(key, name, index, amount)
  redis.call('HINCRBY', key, name .. index % 61, amount)
  return redis.call('HINCRBY', key, name .. 'n', amount)
end

-- milliseconds until `amount` fits
local function room_in(key, name, step, index, missing)
  local slots = {}
  for each = index - 60, index do slots[#slots + 1] = name .. each % 61 end
  for place, count in ipairs(redis.call('HMGET', key, unpack(slots))) do
    missing = missing - (tonumber(count) or 0)
    if missing <= 0 then
      local free = (index - 60 + place - 1 + 61) * step
      return math.max(math.ceil((free - seconds) * 1000 - micro / 1000), 1)
    end
  end
  return 60 * step * 1000
end

local function keep(key, longest)
  redis.call('EXPIRE', key, math.max(3600, 62 * longest))
end

local function working(key, own)
  local held, total = redis.call('HGETALL', key), 0
  for place = 1, #held, 2 do
    if held[place] == own or redis.call('EXISTS', held[place]) == 1 then
      total = total + tonumber(held[place + 1])
    else
      redis.call('HDEL', key, held[place]) -- of a gateway that is no more
    end
  end
  return total
end

-- windows of a meter with the slices of now: kind, index, sum, count of the slice; and whether time has gone on
local function look(key, figures)
  local fields, states = {}, {}
  for kind = 1, 4 do
    if tonumber(ARGV[figures + kind]) >= 0 then
      local name, index = NAMES[kind], math.floor(seconds / STEPS[kind])
      local place = #fields
      fields[place + 1], fields[place + 2], fields[place + 3] = name .. 'i', name .. 'n', name .. index % 61
      states[#states + 1] = {kind, index, 0, 0}
    end
  end
  if #fields == 0 then return states, true end
  local found, slid = redis.call('HMGET', key, unpack(fields)), false
  for place, state in ipairs(states) do
    if tonumber(found[3 * place - 2]) == state[2] then
      state[3], state[4] = tonumber(found[3 * place - 1]), tonumber(found[3 * place]) or 0
    else
      local name = NAMES[state[1]]
      slid = true
      state[2], state[3] = slide(key, name, STEPS[state[1]])
      state[4] = tonumber(redis.call('HGET', key, name .. state[2] % 61)) or 0
    end
  end
  return states, slid
end

-- all of it or nothing. ARGV: tokens, rate and burst of the bucket, the figures of each meter
local function take()
  if redis.call('EXISTS', KEYS[1]) == 0 then return {2} end
  local tokens, rate, burst = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
  local meters = (#KEYS - 2) / 2
  local found, late = {}, {}
  for meter = 1, meters do
    local windows, workers, figures = KEYS[2 * meter + 1], KEYS[2 * meter + 2], 5 * meter
    local most = tonumber(ARGV[figures])
    if most >= 0 and working(workers, KEYS[1]) >= most then return {1, meter - 1, 0, 1000} end
    local states, slid = look(windows, figures)
    for _, state in ipairs(states) do
      local kind, limit = state[1], tonumber(ARGV[figures + state[1]])
      local wanted, left = kind == 4 and tokens or 1, limit - state[3]
      -- what is larger than the whole window may still go when the window is empty
      if left < wanted and (kind < 4 or left < limit) then
        local missing = math.min(wanted, limit) - left
        return {1, meter - 1, kind, room_in(windows, NAMES[kind], STEPS[kind], state[2], missing)}
      end
    end
    found[meter], late[meter] = states, slid
  end
  if burst > 0 then
    local held = redis.call('GET', KEYS[2]) or ''
    local level, since = string.match(held, '^(%S+) (%S+)$')
    local now = seconds + micro / 1e6
    level, since = tonumber(level) or burst, tonumber(since) or now
    level = math.min(burst, level + math.max(0, now - since) * rate / 60)
    if level < 1 then return {1, -1, 0, math.ceil((1 - level) * 60000 / rate)} end
    redis.call('SET', KEYS[2], string.format('%.6f %.6f', level - 1, math.max(now, since)), 'EX', 3600)
  end
  local requests, left = -1, -1 -- of the last meter, the client's own
  for meter = 1, meters do
    local windows, workers, figures = KEYS[2 * meter + 1], KEYS[2 * meter + 2], 5 * meter
    local values, longest = {}, 0
    requests, left = -1, -1
    for _, state in ipairs(found[meter]) do
      local kind, index, total, count = unpack(state)
      local wanted, place, name = kind == 4 and tokens or 1, #values, NAMES[kind]
      values[place + 1], values[place + 2] = name .. 'n', total + wanted
      values[place + 3], values[place + 4] = name .. index % 61, count + wanted
      longest = math.max(longest, STEPS[kind])
      local rest = math.max(0, tonumber(ARGV[figures + kind]) - total - wanted)
      if kind == 4 then left = rest elseif requests < 0 then requests = rest end
    end
    if longest > 0 then redis.call('HSET', windows, unpack(values)) end
    if longest > 0 and late[meter] then keep(windows, longest) end
    if tonumber(ARGV[figures]) >= 0 then
      redis.call('HINCRBY', workers, KEYS[1], 1)
      if late[meter] then redis.call('EXPIRE', workers, 86400) end
    end
  end
  return {0, seconds, requests, left}
end

-- what was not used. ARGV: second of the taking, requests, tokens, burst, whether the work is still counted, figures.
-- The lease counts these calls, so that one whose answer was lost is known to have been heard.
local function give()
  if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
  redis.call('INCR', KEYS[1])
  local at, burst = tonumber(ARGV[2]), tonumber(ARGV[5])
  local amounts = {ARGV[3], ARGV[3], ARGV[3], ARGV[4]}
  for meter = 1, (#KEYS - 2) / 2 do
    local windows, workers, figures = KEYS[2 * meter + 1], KEYS[2 * meter + 2], 5 * meter + 1
    if ARGV[6] == '1' and tonumber(ARGV[figures + 1]) >= 0 then
      if redis.call('HINCRBY', workers, KEYS[1], -1) <= 0 then redis.call('HDEL', workers, KEYS[1]) end
    end
    for kind = 1, at > 0 and 4 or 0 do
      local amount, name = tonumber(amounts[kind]), NAMES[kind]
      if amount ~= 0 and tonumber(ARGV[figures + 1 + kind]) >= 0 then
        local index = math.floor(at / STEPS[kind])
        local held = redis.call('HMGET', windows, name .. 'i', name .. index % 61)
        local last = tonumber(held[1])
        amount = math.min(amount, tonumber(held[2]) or 0)
        if amount ~= 0 and last and index <= last and last - index <= 60 then add(windows, name, index, -amount) end
      end
    end
  end
  if burst > 0 and at > 0 and tonumber(ARGV[3]) > 0 then
    local level, since = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%S+)$')
    if level then
      redis.call('SET', KEYS[2], string.format('%.6f %s', math.min(burst, level + 1), since), 'EX', 3600)
    end
  end
  return 1
end

-- what a gateway counted by itself. KEYS: one meter's windows. ARGV: kind, age in seconds and amount, each
local function tell()
  local longest = 0
  for place = 2, #ARGV, 3 do
    local kind, age, amount = tonumber(ARGV[place]), tonumber(ARGV[place + 1]), tonumber(ARGV[place + 2])
    local last = slide(KEYS[1], NAMES[kind], STEPS[kind])
    local index = math.floor((seconds - age) / STEPS[kind])
    if index <= last and last - index <= 60 then add(KEYS[1], NAMES[kind], index, amount) end
    longest = math.max(longest, STEPS[kind])
  end
  keep(KEYS[1], longest)
  return 1
end

if ARGV[1] == 'take' then return take() elseif ARGV[1] == 'give' then return give() else return tell() end
